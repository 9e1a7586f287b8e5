//! The product's own settings, given at bootstrap or join: texts by name, and how they become a type of the product.

use std::collections::BTreeMap;
use std::collections::btree_map::IntoIter;
use std::fmt;
use std::ops::{Deref, DerefMut};

use serde::de::value::MapDeserializer;
use serde::de::{DeserializeOwned, Deserializer, IntoDeserializer, Visitor};
use serde::forward_to_deserialize_any;

/// The product's own settings, given at bootstrap or join and handed to its hooks: texts by name.
///
/// ```
/// use microcluster_client::InitConfig;
/// use serde::Deserialize;
///
/// #[derive(Deserialize)]
/// struct Settings {
///     zone: String,
///     #[serde(default)]
///     replicas: u32,
///     #[serde(default)]
///     tags: Vec<String>,
/// }
///
/// let config: InitConfig = [("zone", "north"), ("replicas", "3"), ("tags", r#"["a"]"#)].into_iter().collect();
/// let settings: Settings = config.decode()?;
/// assert_eq!((settings.zone.as_str(), settings.replicas, settings.tags.len()), ("north", 3, 1));
/// # Ok::<(), microcluster_client::InitConfigError>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(transparent)]
#[cfg_attr(feature = "schema", schemars(description = "The product's own settings: texts by name."))]
pub struct InitConfig(BTreeMap<String, String>);

/// The settings do not fit the type that they are to become.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the configuration cannot be used: {0}")]
pub struct InitConfigError(String);

impl InitConfig {
    /// Decodes the settings into a type with a field for each. Numbers, booleans and unit variants are read from
    /// their texts, lists and maps from JSON.
    ///
    /// # Errors
    /// [`InitConfigError`] names the setting that is missing or cannot be read.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, InitConfigError> {
        let pairs = self.0.iter().map(|(name, text)| (name.as_str(), Setting { name, text }));
        T::deserialize(MapDeserializer::new(pairs))
    }
}

/// One setting, on its way into a field.
struct Setting<'a> {
    name: &'a str,
    text: &'a str,
}

impl Setting<'_> {
    fn parsed<T: std::str::FromStr<Err: fmt::Display>>(&self) -> Result<T, InitConfigError> {
        self.text.trim().parse().map_err(|e| InitConfigError(format!("{} is {:?}: {e}", self.name, self.text)))
    }

    fn json(&self) -> Result<serde_json::Value, InitConfigError> {
        serde_json::from_str(self.text).map_err(|e| InitConfigError(format!("{} is not JSON: {e}", self.name)))
    }

    fn named<T>(&self, read: Result<T, serde_json::Error>) -> Result<T, InitConfigError> {
        read.map_err(|e| InitConfigError(format!("{}: {e}", self.name)))
    }
}

/// Numbers and booleans are parsed.
macro_rules! parsed {
    ($($method:ident => $visit:ident,)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, InitConfigError> {
            visitor.$visit(self.parsed()?)
        })*
    };
}

impl<'de> Deserializer<'de> for Setting<'_> {
    type Error = InitConfigError;

    parsed! {
        deserialize_bool => visit_bool,
        deserialize_i8 => visit_i8,
        deserialize_i16 => visit_i16,
        deserialize_i32 => visit_i32,
        deserialize_i64 => visit_i64,
        deserialize_i128 => visit_i128,
        deserialize_u8 => visit_u8,
        deserialize_u16 => visit_u16,
        deserialize_u32 => visit_u32,
        deserialize_u64 => visit_u64,
        deserialize_u128 => visit_u128,
        deserialize_f32 => visit_f32,
        deserialize_f64 => visit_f64,
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, InitConfigError> {
        let named = |e: InitConfigError| InitConfigError(format!("{}: {}", self.name, e.0));
        visitor.visit_str(self.text).map_err(named)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, InitConfigError> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, InitConfigError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, InitConfigError> {
        self.named(self.json()?.deserialize_seq(visitor))
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, InitConfigError> {
        self.named(self.json()?.deserialize_map(visitor))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, InitConfigError> {
        self.named(self.json()?.deserialize_struct(name, fields, visitor))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, InitConfigError> {
        let named = |e: InitConfigError| InitConfigError(format!("{}: {}", self.name, e.0));
        visitor.visit_enum(self.text.into_deserializer()).map_err(named)
    }

    forward_to_deserialize_any! {
        char str string bytes byte_buf unit unit_struct tuple tuple_struct identifier ignored_any
    }
}

impl<'de> IntoDeserializer<'de, InitConfigError> for Setting<'_> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl serde::de::Error for InitConfigError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        InitConfigError(message.to_string())
    }
}

impl Deref for InitConfig {
    type Target = BTreeMap<String, String>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl DerefMut for InitConfig {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for InitConfig {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        InitConfig(pairs.into_iter().map(|(name, text)| (name.into(), text.into())).collect())
    }
}

impl From<BTreeMap<String, String>> for InitConfig {
    fn from(settings: BTreeMap<String, String>) -> Self {
        InitConfig(settings)
    }
}

impl IntoIterator for InitConfig {
    type Item = (String, String);
    type IntoIter = IntoIter<String, String>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Mode {
        Fast,
        Safe,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    struct Port(u16);

    #[derive(Debug, PartialEq, Deserialize)]
    struct Settings {
        name: String,
        count: u32,
        ratio: Option<f64>,
        on: bool,
        mode: Mode,
        port: Port,
        #[serde(default)]
        list: Vec<u8>,
        missing: Option<String>,
    }

    fn config(changes: &[(&str, &str)]) -> InitConfig {
        let mut config: InitConfig =
            [("name", "7"), ("count", "3"), ("ratio", "0.5"), ("on", "true"), ("mode", "safe"), ("port", "80")]
                .into_iter()
                .collect();
        config.extend(changes.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())));
        config
    }

    #[test]
    fn texts_become_what_the_fields_are() {
        let decoded: Settings = config(&[("list", "[1, 2]"), ("unknown", "x")]).decode().unwrap();
        let expected = Settings {
            name: "7".into(),
            count: 3,
            ratio: Some(0.5),
            on: true,
            mode: Mode::Safe,
            port: Port(80),
            list: vec![1, 2],
            missing: None,
        };
        assert_eq!(decoded, expected);
        assert_eq!(config(&[]).decode::<BTreeMap<String, String>>().unwrap()["count"], "3");
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let refused = |name, text| config(&[(name, text)]).decode::<Settings>().unwrap_err().to_string();
        for (name, text) in
            [("count", "-1"), ("on", "yes"), ("mode", "slow"), ("port", "70000"), ("list", "1,2"), ("list", "{}")]
        {
            let message = refused(name, text);
            assert!(message.contains(name), "{name} = {text}: {message}");
        }
        let empty = InitConfig::default().decode::<Settings>().unwrap_err().to_string();
        assert!(empty.contains("name"), "{empty}");
    }

    #[test]
    fn on_the_wire_it_is_an_object_of_texts() {
        let config: InitConfig = [("a", "1")].into_iter().collect();
        assert_eq!(serde_json::to_string(&config).unwrap(), r#"{"a":"1"}"#);
        assert_eq!(serde_json::from_str::<InitConfig>(r#"{"a":"1"}"#).unwrap(), config);
    }
}
