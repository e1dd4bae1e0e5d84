//! The shared memory of Maru: devices, identity headers, mappings, page views.
