//! The shell around one Maru directory.
