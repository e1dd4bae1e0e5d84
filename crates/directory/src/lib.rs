//! The index of Maru as a pure state machine.
