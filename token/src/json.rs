// SPDX-License-Identifier: MIT OR Apache-2.0

//! JSON objects whose names are unique, at any depth, read without a tree.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// A receiver of the known members of an object.
pub(crate) trait Members<'de>: Default {
    /// How all others are read: [`Skipped`] looks for names that are there twice in them too, as deep as serde_json
    /// goes.
    type Unknown: Deserialize<'de>;

    /// Takes the value of `name` from `map`, or leaves it there and returns false.
    fn take<A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<bool, A::Error>;
}

/// An object, read from the text of a JSON object, each of whose names is there once.
///
/// Every value of [`Value`] can be read from anything, so that an error of the category "data" is a name that is there
/// twice.
pub(crate) struct Unique<T>(pub(crate) T);

impl<'de, T: Members<'de>> Deserialize<'de> for Unique<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object<T>(T);

        impl<'de, T: Members<'de>> Visitor<'de> for Object<T> {
            type Value = Unique<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(mut self, map: A) -> Result<Unique<T>, A::Error> {
                members(map, &mut self.0)?;
                Ok(Unique(self.0))
            }
        }

        deserializer.deserialize_map(Object(T::default()))
    }
}

fn members<'de, T: Members<'de>, A: MapAccess<'de>>(mut map: A, into: &mut T) -> Result<(), A::Error> {
    let mut seen = Seen::default();
    while let Some(Text(name)) = map.next_key()? {
        let known = into.take(&name, &mut map)?;
        if !seen.insert(name) {
            return Err(A::Error::custom("a name is there twice"));
        }
        if !known {
            map.next_value::<T::Unknown>()?;
        }
    }
    Ok(())
}

/// A JSON value, as far as any check needs it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value<'de> {
    Number(f64),
    /// A number within the map that serde_json makes of one where its feature `arbitrary_precision` is on. It is in no
    /// other value.
    Digits(f64),
    Text(Cow<'de, str>),
    List(Vec<Value<'de>>),
    Other,
}

impl<'de> Deserialize<'de> for Value<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_u64<E>(self, number: u64) -> Result<Value<'de>, E> {
        Ok(Value::Number(number as f64))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Value<'de>, E> {
        Ok(Value::Number(number as f64))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Value<'de>, E> {
        Ok(Value::Number(number))
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Value<'de>, E> {
        Ok(Value::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value<'de>, E> {
        Ok(Value::Text(Cow::Owned(text.to_owned())))
    }

    /// The digits of a number, with `arbitrary_precision`: serde_json lends the strings of the text, and gives none
    /// away.
    fn visit_string<E>(self, digits: String) -> Result<Value<'de>, E> {
        Ok(digits.parse().map_or(Value::Other, Value::Digits))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Value<'de>, E> {
        Ok(Value::Other)
    }

    fn visit_unit<E>(self) -> Result<Value<'de>, E> {
        Ok(Value::Other)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value<'de>, A::Error> {
        let mut list = Vec::new();
        while let Some(value) = seq.next_element()? {
            list.push(value);
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Value<'de>, A::Error> {
        let mut object = Object::default();
        members(map, &mut object)?;
        Ok(match object.0 {
            Some(Value::Digits(number)) => Value::Number(number),
            _ => Value::Other,
        })
    }
}

/// Any object, or what serde_json makes of a number where its feature `arbitrary_precision` is on, as other crates may
/// have it: without looking into it, a fraction would be no number.
#[derive(Default)]
struct Object<'de>(Option<Value<'de>>);

impl<'de> Members<'de> for Object<'de> {
    type Unknown = Skipped;

    fn take<A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<bool, A::Error> {
        match name {
            "$serde_json::private::Number" => value(map, &mut self.0),
            _ => Ok(false),
        }
    }
}

/// Knows no member.
#[derive(Default)]
pub(crate) struct Nothing;

impl<'de> Members<'de> for Nothing {
    type Unknown = Skipped;

    fn take<A: MapAccess<'de>>(&mut self, _: &str, _: &mut A) -> Result<bool, A::Error> {
        Ok(false)
    }
}

/// A value that nobody looks at, but for the names in it.
pub(crate) type Skipped = ObjectOr<Nothing>;

/// A string, borrowed unless it has escapes.
#[derive(PartialEq)]
pub(crate) struct Text<'de>(pub(crate) Cow<'de, str>);

impl<'de> Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;

        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }

        deserializer.deserialize_str(TextVisitor)
    }
}

/// The names of an object so far. The first ones, of which real tokens have no more, are kept without an allocation;
/// the others are hashed, so that a token of thousands of names takes no longer than its length.
#[derive(Default)]
struct Seen<'de> {
    first: [&'de str; 16],
    count: usize,
    others: HashSet<Cow<'de, str>>,
}

impl<'de> Seen<'de> {
    /// Returns whether the name is new.
    fn insert(&mut self, name: Cow<'de, str>) -> bool {
        if self.first[..self.count].contains(&&*name) {
            return false;
        }
        match name {
            Cow::Borrowed(name) if self.count < self.first.len() => {
                // An empty set is asked without hashing.
                if self.others.contains(name) {
                    return false;
                }
                self.first[self.count] = name;
                self.count += 1;
                true
            }
            name => self.others.insert(name),
        }
    }
}

/// Returns the text without the mark that some editors and servers put first, which a reader may ignore (RFC 8259 section 8.1).
pub(crate) fn without_mark(text: &[u8]) -> &[u8] {
    text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text)
}

/// Returns where `part` is in `whole`; `None` where it is not a piece of it.
pub(crate) fn place(part: &str, whole: &str) -> Option<std::ops::Range<usize>> {
    let start = (part.as_ptr() as usize).checked_sub(whole.as_ptr() as usize)?;
    let end = start.checked_add(part.len())?;
    (end <= whole.len()).then_some(start..end)
}

/// A JSON string.
pub(crate) fn quoted(text: &str) -> String {
    // A string serializes without fail: it has no key of a map and no number.
    serde_json::to_string(text).expect("a string is JSON")
}

/// A member whose value is any.
pub(crate) fn value<'de, A: MapAccess<'de>>(map: &mut A, into: &mut Option<Value<'de>>) -> Result<bool, A::Error> {
    *into = Some(map.next_value()?);
    Ok(true)
}

/// A member that is an object of known members; anything else is `None`.
pub(crate) struct ObjectOr<T>(pub(crate) Option<T>);

impl<'de, T: Members<'de>> Deserialize<'de> for ObjectOr<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ObjectOrVisitor(T::default()))
    }
}

struct ObjectOrVisitor<T>(T);

impl<'de, T: Members<'de>> Visitor<'de> for ObjectOrVisitor<T> {
    type Value = ObjectOr<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_u64<E>(self, _: u64) -> Result<ObjectOr<T>, E> {
        Ok(ObjectOr(None))
    }

    fn visit_i64<E>(self, _: i64) -> Result<ObjectOr<T>, E> {
        Ok(ObjectOr(None))
    }

    fn visit_f64<E>(self, _: f64) -> Result<ObjectOr<T>, E> {
        Ok(ObjectOr(None))
    }

    fn visit_str<E>(self, _: &str) -> Result<ObjectOr<T>, E> {
        Ok(ObjectOr(None))
    }

    fn visit_bool<E>(self, _: bool) -> Result<ObjectOr<T>, E> {
        Ok(ObjectOr(None))
    }

    fn visit_unit<E>(self) -> Result<ObjectOr<T>, E> {
        Ok(ObjectOr(None))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<ObjectOr<T>, A::Error> {
        while seq.next_element::<Skipped>()?.is_some() {}
        Ok(ObjectOr(None))
    }

    fn visit_map<A: MapAccess<'de>>(mut self, map: A) -> Result<ObjectOr<T>, A::Error> {
        members(map, &mut self.0)?;
        Ok(ObjectOr(Some(self.0)))
    }
}
