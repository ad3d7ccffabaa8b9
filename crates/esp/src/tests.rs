//! Vectors and properties.
