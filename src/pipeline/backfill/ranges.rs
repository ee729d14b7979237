//! Which offsets of which topics a person means.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{BackfillError, OpenLog, TableHistory};
use crate::config::{Brokers, Config};
use crate::error::Result;
use crate::ids::TableName;
use crate::offsets::{OffsetRange, Positions, TopicPartition};
use crate::pipeline::{Route, kafka_config, route};
use crate::source::{Assignment, KafkaAdmin, KafkaConfig, KafkaSource, Source};

/// What is to be read again of the project's topics. What is not said is the beginning and the end of what they hold.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    pub from: Positions,
    /// The first offsets that are no longer meant.
    pub to: Positions,
    /// Milliseconds since 1970.
    pub from_ms: Option<i64>,
    pub to_ms: Option<i64>,
    pub table: Option<String>,
}

impl Wanted {
    /// Whether only the partitions that are named are meant.
    fn is_of_partitions(&self) -> bool {
        !(self.from.is_empty() && self.to.is_empty()) && self.from_ms.is_none() && self.to_ms.is_none()
    }

    fn means(&self, at: &TopicPartition, table: &TableName) -> bool {
        let is_named = self.from.contains_key(at) || self.to.contains_key(at);
        let is_of_table = self.table.as_ref().is_none_or(|name| table.name() == name || table.to_string() == *name);
        is_of_table && (is_named || !self.is_of_partitions())
    }

    /// What that is at the brokers, by table.
    pub async fn histories(&self, config: &Config, kafka: &KafkaAdmin) -> Result<Vec<TableHistory>> {
        let mut routes: BTreeMap<TopicPartition, Route> = BTreeMap::new();
        for at in kafka.partitions().await? {
            let is_read = config.reads_topic(&at.topic) || self.from.contains_key(&at) || self.to.contains_key(&at);
            if let Some(route) = route(config, &at.topic).filter(|route| is_read && self.means(&at, &route.table)) {
                routes.insert(at, route);
            }
        }
        if let Some(at) = self.from.keys().chain(self.to.keys()).find(|at| !routes.contains_key(at)) {
            return Err(BackfillError::NoPartition { at: at.clone() }.into());
        }
        let partitions: Vec<TopicPartition> = routes.keys().cloned().collect();
        let bounds = kafka.bounds(partitions.clone()).await?;
        let at_time = async |time: Option<i64>| match time {
            Some(time) => kafka.offsets_at(time, partitions.clone()).await,
            None => Ok(Positions::new()),
        };
        let (from_time, to_time) = (at_time(self.from_ms).await?, at_time(self.to_ms).await?);
        let mut tables: BTreeMap<TableName, (Route, BTreeMap<TopicPartition, OffsetRange>)> = BTreeMap::new();
        for (at, route) in routes {
            let Some(bounds) = bounds.get(&at).copied() else { continue };
            for offset in [self.from.get(&at), self.to.get(&at)].into_iter().flatten() {
                if *offset < bounds.first || *offset > bounds.end {
                    return Err(BackfillError::Outside { at: at.clone(), offset: *offset, bounds }.into());
                }
            }
            let behind = |time: Option<i64>, found: &Positions, other: i64| match time {
                // No record is of that time or later.
                Some(_) => found.get(&at).copied().unwrap_or(bounds.end),
                None => other,
            };
            let from = self.from.get(&at).copied().unwrap_or_else(|| behind(self.from_ms, &from_time, bounds.first));
            let next = self.to.get(&at).copied().unwrap_or_else(|| behind(self.to_ms, &to_time, bounds.end));
            if from < next {
                let table = tables.entry(route.table.clone()).or_insert((route, BTreeMap::new()));
                table.1.insert(at, OffsetRange { from, next });
            }
        }
        let history = |(route, ranges): (Route, BTreeMap<TopicPartition, OffsetRange>)| {
            let open = opens(config, &ranges);
            TableHistory::of_log(route, ranges, open)
        };
        Ok(tables.into_values().map(history).collect())
    }
}

/// Opens the topics of these partitions, each time anew.
fn opens(config: &Config, ranges: &BTreeMap<TopicPartition, OffsetRange>) -> OpenLog {
    let brokers = match &config.kafka.brokers {
        Some(Brokers::At(brokers)) => brokers.clone(),
        _ => String::new(),
    };
    let mut topics: Vec<String> = ranges.keys().map(|at| at.topic.to_string()).collect();
    topics.dedup();
    let config = KafkaConfig { topics, assignment: Assignment::Everything, ..kafka_config(config, &brokers) };
    Arc::new(move || Ok(Box::new(KafkaSource::connect(config.clone())?) as Box<dyn Source>))
}
