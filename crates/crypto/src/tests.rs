//! Published vectors and properties.
