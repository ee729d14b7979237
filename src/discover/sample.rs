//! Some records of a topic: of each partition the oldest and the newest.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::seen::fields;
use crate::change::{ChangeEvent, Decoded};
use crate::decode::{Format, decode};
use crate::offsets::{OffsetRange, Positions, TopicPartition};
use crate::source::{FetchLimits, Source, Start};

/// How much of a topic's records is looked at at most.
const MOST_BYTES: usize = 64 << 20;

/// How long nothing may come before the sample is taken to be whole. An open transaction holds records back.
const PATIENCE: Duration = Duration::from_secs(10);

/// What was read of a topic, decoded, in the order of partition and offset.
#[derive(Debug)]
pub struct Sample {
    pub topic: Arc<str>,
    pub decoded: Vec<Decoded>,
    /// How many offsets the topic spans, most of which hold a record.
    pub span: u64,
    /// Why there is less of it than asked for.
    pub cut: Option<String>,
}

/// Reads up to `records` of a topic, spread over its partitions and over their beginnings and ends. No group's offsets
/// are moved.
pub async fn sample(
    source: &mut dyn Source,
    topic: &str,
    partitions: &[TopicPartition],
    records: usize,
    format: Format,
) -> crate::source::Result<Sample> {
    let starts: BTreeMap<TopicPartition, Start> = partitions.iter().map(|at| (at.clone(), Start::Beginning)).collect();
    let firsts = source.assign(&starts).await?;
    let ends = source.end_offsets().await?;
    let spans: Vec<OffsetRange> = partitions
        .iter()
        .map(|at| {
            let from = firsts.get(at).copied().unwrap_or_default();
            OffsetRange { from, next: ends.get(at).copied().unwrap_or(from).max(from) }
        })
        .collect();
    let shares = shares(&spans.iter().map(|span| span.next - span.from).collect::<Vec<_>>(), records);
    let (mut heads, mut tails) = (Positions::new(), BTreeMap::new());
    for ((at, span), share) in partitions.iter().zip(&spans).zip(shares) {
        if share == 0 {
            continue;
        }
        if share < span.next - span.from {
            heads.insert(at.clone(), span.from + (share + 1) / 2);
            if share > 1 {
                tails.insert(at.clone(), Start::At { next: span.next - share / 2, last: None });
            }
        } else {
            heads.insert(at.clone(), span.next);
        }
    }
    let mut reading = Reading { source, format, decoded: Vec::new(), bytes: 0, cut: None };
    reading.read_to(&heads).await?;
    if !tails.is_empty() {
        reading.source.assign(&tails).await?;
        let ends: Positions = ends.into_iter().filter(|(at, _)| tails.contains_key(at)).collect();
        reading.read_to(&ends).await?;
    }
    let Reading { mut decoded, cut, .. } = reading;
    decoded.sort_by_key(|decoded| (decoded.record().partition, decoded.record().offset));
    let span = spans.iter().map(|span| (span.next - span.from).unsigned_abs()).sum();
    Ok(Sample { topic: topic.into(), decoded, span, cut })
}

struct Reading<'s> {
    source: &'s mut dyn Source,
    format: Format,
    decoded: Vec<Decoded>,
    bytes: usize,
    cut: Option<String>,
}

impl Reading<'_> {
    /// Reads the partitions of `goals` up to the offsets there.
    async fn read_to(&mut self, goals: &Positions) -> crate::source::Result<()> {
        let limits = FetchLimits { records: 1000, bytes: 8 << 20, wait: Duration::from_secs(1) };
        let mut open: Positions = goals.clone();
        let mut moved = Instant::now();
        while let Some((at, goal)) = open.first_key_value() {
            if self.bytes >= MOST_BYTES {
                self.cut = Some(format!("its sample ends after {} records, as they are large", self.decoded.len()));
                break;
            }
            if moved.elapsed() >= PATIENCE {
                let seconds = PATIENCE.as_secs();
                self.cut = Some(format!(
                    "its sample ends before offset {goal} of `{at}`: nothing came for {seconds} seconds, as in an open transaction"
                ));
                break;
            }
            let fetched = self.source.fetch(limits).await?;
            if !fetched.positions.is_empty() {
                moved = Instant::now();
            }
            for record in fetched.records {
                let at = TopicPartition::new(record.topic.clone(), record.partition);
                if goals.get(&at).is_some_and(|goal| record.offset < *goal) {
                    self.bytes += record.payload.as_ref().map_or(0, |payload| payload.len());
                    self.decoded.push(decode(record, self.format));
                }
            }
            open.retain(|at, goal| fetched.positions.get(at).is_none_or(|next| next < goal));
        }
        Ok(())
    }
}

/// How many records of each partition to read, so that small ones leave their part to the others.
fn shares(sizes: &[i64], records: usize) -> Vec<i64> {
    let mut order: Vec<usize> = (0..sizes.len()).collect();
    order.sort_by_key(|index| sizes[*index]);
    let (mut left, mut shares) = (i64::try_from(records).unwrap_or(i64::MAX), vec![0; sizes.len()]);
    for (done, index) in order.iter().enumerate() {
        shares[*index] = sizes[*index].min(left / (order.len() - done) as i64);
        left -= shares[*index];
    }
    shares
}

impl Sample {
    /// The changes of rows, in the order they were read.
    pub(super) fn changes(&self) -> impl Iterator<Item = &ChangeEvent> {
        self.decoded.iter().filter_map(|decoded| match decoded {
            Decoded::Change(event) if event.before.is_some() || event.after.is_some() => Some(event),
            _ => None,
        })
    }

    /// The connector that sent the records, as their source blocks call it.
    pub(super) fn connector(&self) -> Option<String> {
        self.changes().find_map(|event| source_field(event, "connector"))
    }

    /// The tables that the records come from, with their schemas or, where there are none, databases.
    pub(super) fn source_tables(&self) -> Vec<(Option<String>, String)> {
        let mut found: Vec<(Option<String>, String)> = Vec::new();
        for event in self.changes() {
            let schema = || source_field(event, "schema").or_else(|| source_field(event, "db"));
            let Some(table) = source_field(event, "table").or_else(|| source_field(event, "collection")) else {
                continue;
            };
            let named = (schema(), table);
            if !found.contains(&named) {
                found.push(named);
            }
        }
        found.sort();
        found
    }
}

fn source_field(event: &ChangeEvent, name: &str) -> Option<String> {
    let source = event.source.as_deref()?;
    let (_, value) = fields(source).into_iter().find(|(field, _)| field == name)?;
    crate::json::string(value).map(std::borrow::Cow::into_owned).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::{EmbeddedBroker, KafkaConfig, KafkaSource};

    #[test]
    fn small_partitions_leave_their_part_to_the_others() {
        let check = |sizes: &[i64], records: usize, expected: &[i64]| assert_eq!(shares(sizes, records), expected);
        check(&[100, 100], 50, &[25, 25]);
        check(&[3, 100, 0], 50, &[3, 47, 0]);
        check(&[3, 4], 50, &[3, 4]);
        check(&[], 50, &[]);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_oldest_and_the_newest_records_of_each_partition_are_read() {
        let broker = EmbeddedBroker::start().unwrap();
        broker.create_topic("t", 3).unwrap();
        let producer = broker.producer().unwrap();
        for (partition, count) in [(0, 200), (1, 3)] {
            for _ in 0..count {
                producer.send(&TopicPartition::new("t", partition), None, Some(b"{}"), 1000).await.unwrap();
            }
        }
        producer.flush().await.unwrap();
        let config = KafkaConfig {
            brokers: broker.brokers().to_string(),
            group: "g".to_string(),
            assignment: crate::source::Assignment::Everything,
            discover_every: Duration::from_secs(30),
            topics: vec!["t".to_string()],
            properties: BTreeMap::new(),
            msk_iam: None,
            queue_bytes: 1 << 20,
        };
        let mut source = KafkaSource::connect(config).unwrap();
        let partitions = source.partitions().await.unwrap();
        let sample = sample(&mut source, "t", &partitions, 23, Format::DebeziumJson).await.unwrap();
        let found: Vec<(i32, i64)> = sample.decoded.iter().map(|d| (d.record().partition, d.record().offset)).collect();
        let expected: Vec<(i32, i64)> =
            (0..10).chain(190..200).map(|offset| (0, offset)).chain((0..3).map(|offset| (1, offset))).collect();
        assert_eq!((found, sample.span), (expected, 203));
    }
}
