//! One instance's side of Maru.
