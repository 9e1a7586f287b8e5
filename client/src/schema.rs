//! JSON schemas of the types that have a form of their own on the wire. The others derive theirs.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use crate::{Address, Name, Secret, Timestamp};

/// Gives a type that is a text on the wire its schema.
macro_rules! text_schema {
    ($type:ident, $($json:tt)+) => {
        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }

            fn schema_id() -> Cow<'static, str> {
                concat!(module_path!(), "::", stringify!($type)).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($($json)+)
            }
        }
    };
}

text_schema!(Name, {
    "type": "string",
    "minLength": 1,
    "maxLength": 255,
    "pattern": r"^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*$",
    "description": "The name of a member, a token or a server: dot-separated labels of 1 to 63 letters, digits and inner hyphens.",
});
text_schema!(Address, {
    "type": "string",
    "description": "An IP address with a port, IPv6 in brackets.",
    "examples": ["10.0.0.1:9000", "[fd00::1]:9000"],
});
text_schema!(Timestamp, {
    "type": "string",
    "format": "date-time",
    "description": "A time, RFC 3339 in UTC. The first second of the year 1 is \"never\".",
});
text_schema!(Secret, {
    "type": "string",
    "format": "password",
    "description": "A key, a token or the secret of one.",
});

/// A text, or the empty text for none.
pub(crate) fn empty_or<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({ "anyOf": [generator.subschema_for::<T>(), { "const": "" }] })
}

/// A duration as a whole number of nanoseconds.
pub(crate) fn nanoseconds(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "integer", "format": "int64", "minimum": 0 })
}
