//! Tests of the endpoint state.
