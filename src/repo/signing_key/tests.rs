//! Tests of `signing_key`.
