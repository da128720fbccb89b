//! Tests of inversion and lookup.
