//! Lists from which both directions between a type of this crate and its message are made.
//!
//! A field is read and written by the [`Codec`](super::codec::Codec) after its colon, and as it is where there is none. Errors
//! name fields as the message does; where several fields are wrong, the first one in the list is named.

use super::Result;

/// The codec of a field.
macro_rules! codec {
    () => {
        super::codec::Same
    };
    ($codec:expr) => {
        $codec
    };
}

/// A struct and its message: first the fields that are called the same in both, then the `renamed` ones, as `ours = theirs`, then those of
/// a struct in our struct that are `flat` in the message. `after` names a function that a message goes through before it is read.
macro_rules! message {
    ($ours:ident = $theirs:path $(, after $check:ident)? {
        $($field:ident $(: $codec:expr)?),* $(,)?
        $(; renamed $($own:ident = $wire:ident $(: $own_codec:expr)?),+ $(,)?)?
        $(; flat $part:ident: $Part:ident { $($inner:ident $(: $inner_codec:expr)?),+ $(,)? })?
    }) => {
        impl From<&$ours> for $theirs {
            fn from(value: &$ours) -> Self {
                use super::codec::Codec as _;
                Self {
                    $($field: codec!($($codec)?).write(&value.$field),)*
                    $($($wire: codec!($($own_codec)?).write(&value.$own),)+)?
                    $($($inner: codec!($($inner_codec)?).write(&value.$part.$inner),)+)?
                }
            }
        }

        impl TryFrom<$theirs> for $ours {
            type Error = super::WireError;

            fn try_from(message: $theirs) -> super::Result<Self> {
                use super::codec::Codec as _;
                $(let message = $check(message)?;)?
                Ok(Self {
                    $($field: codec!($($codec)?).read(stringify!($field), message.$field)?,)*
                    $($($own: codec!($($own_codec)?).read(stringify!($wire), message.$wire)?,)+)?
                    $($part: $Part {
                        $($inner: codec!($($inner_codec)?).read(stringify!($inner), message.$inner)?,)+
                    },)?
                })
            }
        }
    };
}

/// An enumeration and its numbers. An unspecified or unknown number is an error, or the variant after `else`.
macro_rules! variants {
    ($ours:ident = $theirs:path { $($variant:ident),+ $(,)? $(; else $unset:ident)? }) => {
        impl super::codec::Numbered for $ours {
            fn number(self) -> i32 {
                type Theirs = $theirs;
                let theirs = match self {
                    $(Self::$variant => Theirs::$variant,)+
                    $(Self::$unset => Theirs::Unspecified,)?
                };
                theirs as i32
            }

            fn numbered(number: i32) -> Option<Self> {
                type Theirs = $theirs;
                match Theirs::try_from(number).unwrap_or(Theirs::Unspecified) {
                    $(Theirs::$variant => Some(Self::$variant),)+
                    Theirs::Unspecified => None $(.or(Some(Self::$unset)))?,
                }
            }
        }
    };
}

/// An enumeration whose last variant holds a message: its numbers, and this message in a field of its own, `failure`.
macro_rules! variants_or_failure {
    ($ours:ident = $theirs:path as $field:ident { $($variant:ident),+; $failed:ident }) => {
        impl From<&$ours> for ($theirs, String) {
            fn from(value: &$ours) -> Self {
                use super::codec::Codec as _;
                type Theirs = $theirs;
                match value {
                    $($ours::$variant => (Theirs::$variant, String::new()),)+
                    $ours::$failed(why) => (Theirs::$failed, super::field::WORDS.write(why)),
                }
            }
        }

        impl TryFrom<($theirs, String)> for $ours {
            type Error = super::WireError;

            fn try_from((value, failure): ($theirs, String)) -> super::Result<Self> {
                use super::codec::Codec as _;
                type Theirs = $theirs;
                Ok(match value {
                    $(Theirs::$variant => Self::$variant,)+
                    Theirs::$failed => Self::$failed(super::field::WORDS.read("failure", failure)?),
                    Theirs::Unspecified => super::field::required(stringify!($field), None)?,
                })
            }
        }
    };
}

/// An enumeration and the `oneof` that carries it, one line for each variant. A variant on the wire holds one value, in parentheses, or
/// a message, whose type stands before its fields. Both sides use the same names for these values; ours may use a pattern, `field: name`.
/// With `as FIELD of MESSAGE` the message of which the `oneof` is the only field is read and written, too.
macro_rules! one_of {
    ($ours:ident = $theirs:path $(as $slot:ident of $message:path)? { $(
        $variant:ident $body:tt = $wire:ident
            $(($value:ident $(: $codec:expr)?))?
            $(: $($inner:ident)::+ { $($field:ident $(: $field_codec:expr)?),* })?
    ),+ $(,)? }) => {
        impl From<&$ours> for $theirs {
            fn from(value: &$ours) -> Self {
                use super::codec::Codec as _;
                match value {
                    $($ours::$variant $body => {
                        $(Self::$wire(codec!($($codec)?).write($value)))?
                        $(Self::$wire($($inner)::+ { $($field: codec!($($field_codec)?).write($field)),* }))?
                    })+
                }
            }
        }

        impl TryFrom<$theirs> for $ours {
            type Error = super::WireError;

            fn try_from(value: $theirs) -> super::Result<Self> {
                use super::codec::Codec as _;
                type Theirs = $theirs;
                match value {
                    $(Theirs::$wire($($value)? $($($inner)::+ { $($field),* })?) => {
                        $(
                            let $value = codec!($($codec)?).read("", $value);
                            let $value = super::pairs::in_variant(stringify!($wire), $value)?;
                        )?
                        $($(
                            let $field = codec!($($field_codec)?).read(stringify!($field), $field);
                            let $field = super::pairs::in_variant(stringify!($wire), $field)?;
                        )*)?
                        Ok(Self::$variant $body)
                    })+
                }
            }
        }

        $(
            impl From<&$ours> for $message {
                fn from(value: &$ours) -> Self {
                    Self { $slot: Some(value.into()) }
                }
            }

            impl TryFrom<$message> for $ours {
                type Error = super::WireError;

                fn try_from(message: $message) -> super::Result<Self> {
                    super::field::required(stringify!($slot), message.$slot)?.try_into()
                }
            }
        )?
    };
}

/// An error of what a variant of a `oneof` holds names the variant's field, too.
pub(super) fn in_variant<T>(variant: &str, value: Result<T>) -> Result<T> {
    value.map_err(|e| e.within(&snake_case(variant)))
}

fn snake_case(variant: &str) -> String {
    let mut name = String::new();
    for letter in variant.chars() {
        if letter.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.extend(letter.to_lowercase());
    }
    name
}
