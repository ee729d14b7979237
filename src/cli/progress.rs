use std::fmt;
use std::time::Duration;

use indicatif::{HumanCount, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

/// Progress bars on stderr. Silent when stderr is no terminal or the person asked for quiet.
#[derive(Clone)]
pub struct Progress {
    bars: MultiProgress,
}

/// One line of progress. It disappears when it is dropped.
#[derive(Debug)]
pub struct Bar(ProgressBar);

impl Progress {
    pub fn new(visible: bool) -> Self {
        let target = if visible { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        Progress { bars: MultiProgress::with_draw_target(target) }
    }

    pub fn is_visible(&self) -> bool {
        !self.bars.is_hidden()
    }

    /// Progress towards a known end.
    pub fn bar(&self, label: &'static str, total: u64) -> Bar {
        let bar = self.bars.add(ProgressBar::new(total));
        bar.set_style(
            style("{prefix:>14} [{bar:32}] {human_pos}/{human_len} {msg} {rate}")
                .with_key("rate", |state: &ProgressState, text: &mut dyn fmt::Write| {
                    // A rate that cannot be written is only missing from the screen.
                    let _ = write!(text, "{}/s", HumanCount(state.per_sec() as u64));
                })
                .progress_chars("=> "),
        );
        bar.set_prefix(label);
        Bar(bar)
    }

    /// Progress over bytes, with how long the rest will take. It may go back.
    pub fn bytes(&self, label: &'static str, total: u64) -> Bar {
        let bar = self.bars.add(ProgressBar::new(total));
        let template = "{prefix:>14} [{bar:32}] {bytes}/{total_bytes} {bytes_per_sec}, {eta} left {msg}";
        bar.set_style(style(template).progress_chars("=> "));
        bar.set_prefix(label);
        Bar(bar)
    }

    /// Something that takes a while.
    pub fn spinner(&self, label: &'static str) -> Bar {
        let bar = self.bars.add(ProgressBar::new_spinner());
        bar.set_style(style("{prefix:>14} {spinner} {msg} {elapsed}"));
        bar.set_prefix(label);
        if self.is_visible() {
            bar.enable_steady_tick(Duration::from_millis(120));
        }
        Bar(bar)
    }

    /// A line on stderr, above the bars.
    pub fn line(&self, text: &str) {
        use std::io::Write;
        // Nobody is left to tell that stderr is closed.
        let _ = self.bars.suspend(|| writeln!(std::io::stderr(), "{text}"));
    }

    /// For whoever else writes to stderr.
    pub(super) fn bars(&self) -> MultiProgress {
        self.bars.clone()
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

impl Bar {
    pub fn advance(&self, by: u64) {
        self.0.inc(by);
    }

    /// Goes on by so many bytes, or back.
    pub fn move_by(&self, by: i64) {
        match u64::try_from(by) {
            Ok(by) => self.0.inc(by),
            Err(_) => self.0.dec(by.unsigned_abs()),
        }
    }

    pub fn set(&self, position: u64) {
        self.0.set_position(position);
    }

    /// A remark behind the numbers.
    pub fn remark(&self, text: impl Into<String>) {
        self.0.set_message(text.into());
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Progress").field("visible", &self.is_visible()).finish()
    }
}
