//! Numbers of IANA registries: any value is kept, the known ones have names.

/// Declares a newtype over an integer with named constants, `name()` and `Display`.
macro_rules! numbers {
    ($(#[$meta:meta])* $type:ident: $int:ty { $($(#[$const_meta:meta])* $name:ident = $value:literal),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type(
            /// The number as on the wire.
            pub $int,
        );

        #[allow(missing_docs)]
        impl $type {
            $($(#[$const_meta])* pub const $name: Self = Self($value);)*

            /// Every number that has a name here.
            pub const NAMED: &'static [Self] = &[$(Self($value)),*];

            /// The name of the number, where it has one.
            pub fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($value => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }

        impl core::fmt::Display for $type {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                match self.name() {
                    Some(name) => f.write_str(name),
                    None => write!(f, "{}", self.0),
                }
            }
        }

        impl core::fmt::Debug for $type {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                core::fmt::Display::fmt(self, f)
            }
        }

        impl From<$int> for $type {
            fn from(value: $int) -> Self {
                Self(value)
            }
        }
    };
}

pub(crate) use numbers;
