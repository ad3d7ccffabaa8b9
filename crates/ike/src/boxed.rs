//! A map whose values lie in boxes: the nodes of a tree stand half empty, and what is large in
//! them would be paid for twice.

use std::collections::{BTreeMap, btree_map};
use std::iter::Map;

type Values<'a, K, V> = Map<btree_map::Values<'a, K, Box<V>>, fn(&'a Box<V>) -> &'a V>;
#[cfg(any(test, feature = "fuzzing"))]
type ValuesMut<'a, K, V> =
    Map<btree_map::ValuesMut<'a, K, Box<V>>, fn(&'a mut Box<V>) -> &'a mut V>;

/// As a [`BTreeMap`] of the values themselves.
pub(crate) struct BoxedMap<K, V>(BTreeMap<K, Box<V>>);

impl<K: Ord, V> BoxedMap<K, V> {
    pub(crate) fn new() -> Self {
        Self(BTreeMap::new())
    }

    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        self.0.get(key).map(|value| &**value)
    }

    pub(crate) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        self.0.get_mut(key).map(|value| &mut **value)
    }

    pub(crate) fn insert(&mut self, key: K, value: V) {
        self.0.insert(key, Box::new(value));
    }

    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        self.0.remove(key).map(|value| *value)
    }

    pub(crate) fn keys(&self) -> btree_map::Keys<'_, K, Box<V>> {
        self.0.keys()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    #[cfg(test)]
    pub(crate) fn contains_key(&self, key: &K) -> bool {
        self.0.contains_key(key)
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn values_mut(&mut self) -> ValuesMut<'_, K, V> {
        self.0.values_mut().map(|value| value)
    }

    pub(crate) fn values(&self) -> Values<'_, K, V> {
        self.0.values().map(|value| value)
    }
}

#[cfg(test)]
impl<K: Ord, V> std::ops::Index<&K> for BoxedMap<K, V> {
    type Output = V;

    fn index(&self, key: &K) -> &V {
        &self.0[key]
    }
}
