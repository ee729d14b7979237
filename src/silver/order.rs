//! The order of events: (`_epoch`, `_position`, `_offset`), and how far a silver table has merged it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Where an event stands in the order of its source. What is not known is before everything that is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Place(pub(super) Option<i32>, pub(super) Option<String>, pub(super) i64);

/// A place that lies in a batch. Topic and partition only decide between events that nothing else tells apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PlaceRef<'a> {
    pub(super) epoch: Option<i32>,
    pub(super) position: Option<&'a str>,
    pub(super) offset: i64,
    pub(super) topic: &'a str,
    pub(super) partition: i32,
}

impl PlaceRef<'_> {
    fn known(&self) -> (Option<i32>, Option<&str>, i64) {
        (self.epoch, self.position, self.offset)
    }

    pub(super) fn to_place(self) -> Place {
        Place(self.epoch, self.position.map(str::to_string), self.offset)
    }

    /// Whether it is not behind the other place.
    pub(super) fn reaches(&self, place: &Place) -> bool {
        self.known() >= (place.0, place.1.as_deref(), place.2)
    }

    pub(super) fn is_past(&self, place: &Place) -> bool {
        self.known() > (place.0, place.1.as_deref(), place.2)
    }
}

/// The furthest place merged of each partition.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Frontier(BTreeMap<String, BTreeMap<i32, Place>>);

impl Frontier {
    pub(super) fn advance(&mut self, place: PlaceRef<'_>) {
        let furthest = self.0.get_mut(place.topic).and_then(|topic| topic.get_mut(&place.partition));
        match furthest {
            Some(furthest) => {
                if place.is_past(furthest) {
                    *furthest = place.to_place();
                }
            }
            None => {
                self.0.entry(place.topic.to_string()).or_default().insert(place.partition, place.to_place());
            }
        }
    }

    /// Whether the event comes after all that was merged of its partition.
    pub(super) fn is_behind(&self, place: PlaceRef<'_>) -> bool {
        let furthest = self.0.get(place.topic).and_then(|topic| topic.get(&place.partition));
        furthest.is_none_or(|furthest| place.is_past(furthest))
    }

    /// Nothing that was merged is past it, whatever partition it came from.
    pub(super) fn furthest(&self) -> Option<&Place> {
        self.0.values().flat_map(BTreeMap::values).max()
    }

    pub(super) fn join(&mut self, other: Frontier) {
        for (topic, partitions) in other.0 {
            let known = self.0.entry(topic).or_default();
            for (partition, place) in partitions {
                match known.get_mut(&partition) {
                    Some(furthest) => *furthest = place.max(furthest.clone()),
                    None => drop(known.insert(partition, place)),
                }
            }
        }
    }
}

/// The last event of each partition, where that is behind what was merged of it: events were sent again, or the source went
/// back to an earlier state and counts its positions from there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stragglers(BTreeMap<String, BTreeMap<i32, Place>>);

impl Stragglers {
    /// Takes up the last events of partitions, as `seen` has them, beside what is merged with them.
    pub(super) fn update(&mut self, seen: &LastEvents, merged: &Frontier) {
        for (topic, partition, last) in seen.iter() {
            let furthest = merged.0.get(topic).and_then(|topic| topic.get(&partition));
            let is_behind =
                furthest.is_some_and(|furthest| last.1.is_some() && (last.0, &last.1) < (furthest.0, &furthest.1));
            let of_topic = self.0.entry(topic.to_string()).or_default();
            match is_behind {
                true => drop(of_topic.insert(partition, last.clone())),
                false => drop(of_topic.remove(&partition)),
            }
        }
        self.0.retain(|_, partitions| !partitions.is_empty());
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Topic, partition and offset of each.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, i32, i64)> {
        self.0
            .iter()
            .flat_map(|(topic, of)| of.iter().map(move |(partition, place)| (topic.as_str(), *partition, place.2)))
    }
}

/// The event with the highest offset of each partition.
#[derive(Debug, Clone, Default)]
pub(super) struct LastEvents(BTreeMap<String, BTreeMap<i32, Place>>);

impl LastEvents {
    pub(super) fn note(&mut self, place: PlaceRef<'_>) {
        let known = self.0.get_mut(place.topic).and_then(|topic| topic.get_mut(&place.partition));
        match known {
            Some(known) => {
                if (place.epoch, place.offset) >= (known.0, known.2) {
                    *known = place.to_place();
                }
            }
            None => drop(self.0.entry(place.topic.to_string()).or_default().insert(place.partition, place.to_place())),
        }
    }

    fn iter(&self) -> impl Iterator<Item = (&str, i32, &Place)> {
        self.0
            .iter()
            .flat_map(|(topic, of)| of.iter().map(move |(partition, place)| (topic.as_str(), *partition, place)))
    }
}

/// Everything of its epoch that is not past it, and everything of earlier epochs, is gone. A source without positions
/// cannot say what was before: its truncations are not followed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Truncation {
    pub(super) epoch: i32,
    pub(super) position: String,
}

impl Truncation {
    pub(super) fn takes(&self, place: &PlaceRef<'_>) -> bool {
        (place.epoch.unwrap_or(0), place.position) <= (self.epoch, Some(self.position.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(epoch: i32, position: Option<&'static str>, offset: i64, partition: i32) -> PlaceRef<'static> {
        PlaceRef { epoch: Some(epoch), position, offset, topic: "t", partition }
    }

    #[test]
    fn a_frontier_keeps_the_furthest_of_each_partition() {
        let mut frontier = Frontier::default();
        for event in [place(0, Some("05"), 1, 0), place(0, Some("03"), 2, 0), place(0, Some("09"), 0, 1)] {
            frontier.advance(event);
        }
        assert_eq!(serde_json::to_string(&frontier).unwrap(), r#"{"t":{"0":[0,"05",1],"1":[0,"09",0]}}"#);
        assert_eq!(frontier.furthest(), Some(&Place(Some(0), Some("09".to_string()), 0)));
        let behind = |event| frontier.is_behind(event);
        assert!(behind(place(0, Some("06"), 0, 0)) && behind(place(1, None, 0, 0)) && behind(place(0, None, 0, 2)));
        assert!(!behind(place(0, Some("05"), 1, 0)) && !behind(place(0, None, 7, 0)));
        assert!(behind(place(0, Some("05"), 2, 0)), "sent again, further on in the topic");
    }

    #[test]
    fn a_partition_that_ends_behind_what_was_merged_is_told_until_it_has_caught_up() {
        let (mut merged, mut stragglers) = (Frontier::default(), Stragglers::default());
        let mut check = |events: &[PlaceRef<'_>], expected: &[(i32, i64)]| {
            let mut seen = LastEvents::default();
            for event in events {
                merged.advance(*event);
                seen.note(*event);
            }
            stragglers.update(&seen, &merged);
            let found: Vec<(i32, i64)> = stragglers.iter().map(|(_, partition, offset)| (partition, offset)).collect();
            assert_eq!(found, expected, "{events:?}");
        };
        check(&[place(0, Some("05"), 1, 0), place(0, Some("07"), 1, 1)], &[]);
        check(&[place(0, Some("03"), 2, 0), place(0, Some("05"), 3, 0)], &[]);
        check(&[place(0, Some("04"), 5, 0), place(0, Some("09"), 4, 0)], &[(0, 5)]);
        check(&[place(0, Some("08"), 2, 1)], &[(0, 5)]);
        check(&[place(0, None, 6, 0)], &[]);
        check(&[place(0, Some("06"), 7, 0)], &[(0, 7)]);
        check(&[place(1, Some("01"), 0, 0)], &[]);
    }

    #[test]
    fn a_truncation_takes_what_is_not_past_it() {
        let truncation = Truncation { epoch: 1, position: "05".to_string() };
        let takes = |event| truncation.takes(&event);
        assert!(takes(place(1, Some("05"), 9, 0)) && takes(place(1, None, 9, 0)) && takes(place(0, Some("99"), 9, 0)));
        assert!(!takes(place(1, Some("06"), 0, 0)) && !takes(place(2, None, 0, 0)));
    }
}
