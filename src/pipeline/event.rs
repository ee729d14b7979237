//! What the pipeline tells whoever watches it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::bronze::BronzeCommit;
use crate::error::Kind;
use crate::gold::GoldCommit;
use crate::ids::TableName;
use crate::quality::Finding;
use crate::silver::SilverCommit;

/// Something that happened. The first four are durable when they are told.
#[derive(Debug, Clone)]
pub enum Event {
    Ingested(BronzeCommit),
    Merged(SilverCommit),
    Refreshed(GoldCommit),
    /// What rules and audits found in a pass, of what was committed and of what was not.
    Checked(Vec<Finding>),
    /// How a table fares: of a bronze table when that changes, of the others after each pass over them.
    Fares {
        layer: Layer,
        table: TableName,
        how: Standing,
    },
    /// Told every few seconds while a source is read.
    Reading(InHand),
    /// A pass over silver and gold has ended. It is whole when nothing in it failed.
    Built {
        is_whole: bool,
    },
    /// A sign of life: what goes round has gone round once more.
    Turned(Turning),
    /// It has ended, and gives no more signs of life for now.
    Ended(Turning),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Layer {
    Bronze,
    Silver,
    Gold,
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Layer::Bronze => "bronze",
            Layer::Silver => "silver",
            Layer::Gold => "gold",
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    Well,
    /// It failed, and is tried again.
    TriedAgain(Kind),
    /// It failed, and nobody tries again in this process.
    Stopped(Kind),
}

/// What is read and not committed yet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InHand {
    /// Offsets that the topics of a table have and the table does not, as far as this process reads them and the client
    /// has heard of their ends.
    pub lag: BTreeMap<TableName, i64>,
    /// Records and rows in memory.
    pub bytes: usize,
}

/// What goes round and round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Turning {
    /// Fetching, dealing out and looking after tables.
    Ingest,
    /// A table after the other, in one pass.
    Build,
}

/// Is told of every event. It must not wait for anything: whoever tells waits for it.
pub type Observer = Arc<dyn Fn(&Event) + Send + Sync>;

/// An observer that looks away.
pub fn unobserved() -> Observer {
    Arc::new(|_| {})
}
