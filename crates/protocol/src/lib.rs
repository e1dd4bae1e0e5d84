//! What travels between an instance and the server of Maru.
