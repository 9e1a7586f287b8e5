//! JSON schemas, as far as the description uses them: whether a value has the described form.

use serde_json::Value;

/// A schema of a document.
#[derive(Clone, Copy)]
pub(super) struct Schema<'a> {
    document: &'a Value,
    schema: &'a Value,
}

impl<'a> Schema<'a> {
    pub fn new(document: &'a Value, schema: &'a Value) -> Self {
        assert!(schema.is_object() || schema.is_boolean(), "no schema: {schema}");
        Schema { document, schema }
    }

    /// Whether a value has this form; the error says where it has not.
    pub fn check(self, value: &Value) -> Result<(), String> {
        let Value::Object(keywords) = self.schema else {
            return if self.schema == true { Ok(()) } else { Err(format!("nothing is allowed, there is {value}")) };
        };
        keywords.iter().try_for_each(|(keyword, argument)| self.keyword(keyword, argument, value))
    }

    fn keyword(self, keyword: &str, argument: &'a Value, value: &Value) -> Result<(), String> {
        let holds = |holds: bool| if holds { Ok(()) } else { Err(format!("{value} is not {keyword} {argument}")) };
        let of = |schema: &'a Value| Schema::new(self.document, schema);
        let each = || argument.as_array().unwrap().iter().map(of);
        match keyword {
            "$ref" => {
                let pointer = argument.as_str().unwrap().strip_prefix('#').unwrap();
                of(self.document.pointer(pointer).unwrap()).check(value)
            }
            "allOf" => each().try_for_each(|schema| schema.check(value)),
            "anyOf" => holds(each().any(|schema| schema.check(value).is_ok())),
            "oneOf" => holds(each().filter(|schema| schema.check(value).is_ok()).count() == 1),
            "const" => holds(value == argument),
            "enum" => holds(argument.as_array().unwrap().contains(value)),
            "type" => {
                let kinds = argument.as_array().map_or_else(|| vec![argument], |all| all.iter().collect());
                holds(kinds.iter().any(|kind| is_kind(kind.as_str().unwrap(), value)))
            }
            "required" => {
                let names = argument.as_array().unwrap().iter().map(|name| name.as_str().unwrap());
                let missing = |name: &&str| value.as_object().is_some_and(|fields| !fields.contains_key(*name));
                names.filter(missing).map(|name| Err(format!("{name} is missing in {value}"))).next().unwrap_or(Ok(()))
            }
            "properties" => {
                let fields = argument.as_object().unwrap().iter();
                let present = fields.filter_map(|(name, schema)| Some((name, schema, value.get(name)?)));
                present
                    .into_iter()
                    .try_for_each(|(name, schema, field)| of(schema).check(field).map_err(|e| format!("{name}: {e}")))
            }
            "items" => value.as_array().into_iter().flatten().try_for_each(|item| of(argument).check(item)),
            // Maps by name: that the names are names is held elsewhere.
            "patternProperties" => {
                let values = value.as_object().into_iter().flat_map(|fields| fields.values());
                let schema = argument.as_object().unwrap().values().next().unwrap();
                values.into_iter().try_for_each(|field| of(schema).check(field))
            }
            "additionalProperties" if self.schema.get("patternProperties").is_some() => Ok(()),
            "additionalProperties" => {
                let values = value.as_object().into_iter().flat_map(|fields| fields.values());
                values.into_iter().try_for_each(|field| of(argument).check(field))
            }
            "minimum" => holds(value.as_f64().is_none_or(|number| number >= argument.as_f64().unwrap())),
            "maximum" => holds(value.as_f64().is_none_or(|number| number <= argument.as_f64().unwrap())),
            "minLength" => {
                holds(value.as_str().is_none_or(|text| text.chars().count() as u64 >= argument.as_u64().unwrap()))
            }
            "maxLength" => {
                holds(value.as_str().is_none_or(|text| text.chars().count() as u64 <= argument.as_u64().unwrap()))
            }
            "title" | "description" | "default" | "examples" | "format" | "pattern" => Ok(()),
            other => Err(format!("the keyword {other} is not known to this test")),
        }
    }
}

fn is_kind(kind: &str, value: &Value) -> bool {
    match kind {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("no type of JSON: {other}"),
    }
}
