//! Tests of the strict reader, the writer and the lenient reader.
