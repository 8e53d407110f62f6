//! Choice of endpoints: pure, no I/O, no clock.
