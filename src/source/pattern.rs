//! Which topics a configuration means.

use super::error::{Error, Result};

/// A topic's name, in which `*` stands for any run of characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TopicPattern {
    text: String,
}

impl TopicPattern {
    pub(super) fn parse(text: &str) -> Result<Self> {
        let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'*');
        if text.is_empty() || text.len() > 249 || !text.bytes().all(legal) {
            return Err(Error::TopicPattern { pattern: text.chars().take(249).collect() });
        }
        Ok(TopicPattern { text: text.to_string() })
    }

    /// The one topic this names, if it names one.
    pub(super) fn literal(&self) -> Option<&str> {
        (!self.text.contains('*')).then_some(&self.text)
    }

    /// Kafka's own topics start with two underscores; a pattern means them only when it says so.
    pub(super) fn matches(&self, topic: &str) -> bool {
        if topic.starts_with("__") && !self.text.starts_with("__") {
            return false;
        }
        fits(&self.text, topic)
    }

    /// Whether it may mean Kafka's own topics.
    pub(super) fn means_internal_topics(&self) -> bool {
        self.text.starts_with("__")
    }

    /// What a member of a group subscribes to: the topic, or a regular expression in librdkafka's form.
    pub(super) fn subscription(&self) -> String {
        match self.literal() {
            Some(topic) => topic.to_string(),
            None => format!("^{}$", self.text.replace('.', "\\.").replace('*', ".*")),
        }
    }
}

/// Whether a text fits a pattern in which `*` stands for any run of characters.
pub(super) fn fits(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let mut last = None;
    for part in parts {
        if let Some(between) = last.replace(part) {
            let Some(at) = rest.find(between) else { return false };
            rest = &rest[at + between.len()..];
        }
    }
    match last {
        Some(end) => rest.ends_with(end),
        None => rest.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_run_of_characters() {
        let check = |pattern: &str, topic: &str, expected: bool| {
            assert_eq!(TopicPattern::parse(pattern).unwrap().matches(topic), expected, "{pattern} {topic}");
        };
        check("shop.public.*", "shop.public.orders", true);
        check("shop.public.*", "shop.public.", true);
        check("shop.public.*", "shopXpublic.orders", false);
        check("shop.*.orders", "shop.public.orders", true);
        check("shop.*.orders", "shop.public.orders.dlq", false);
        check("shop.*.orders", "shop.orders", false);
        check("*orders*", "shop.public.order_items", false);
        check("*order*s", "shop.public.order_items", true);
        check("*a*a", "a", false);
        check("orders", "orders", true);
        check("orders", "orders2", false);
        check("*", "__consumer_offsets", false);
        check("__debezium-heartbeat.*", "__debezium-heartbeat.shop", true);
    }

    #[test]
    fn what_no_topic_can_be_called_is_refused() {
        for bad in ["", "shop public", "^shop.*$", "shop/orders", "größe"] {
            assert!(TopicPattern::parse(bad).is_err(), "{bad}");
        }
        insta::assert_snapshot!(TopicPattern::parse("^shop").unwrap_err(), @"`^shop` is not a topic: names have up to 249 letters, digits, `.`, `_` and `-`, and `*` for any part");
        assert_eq!(TopicPattern::parse("a.b").unwrap().literal(), Some("a.b"));
        assert_eq!(TopicPattern::parse("a.*").unwrap().literal(), None);
    }

    #[test]
    fn a_pattern_is_subscribed_to_as_a_regular_expression() {
        let check = |pattern: &str, expected: &str| {
            assert_eq!(TopicPattern::parse(pattern).unwrap().subscription(), expected);
        };
        check("shop.public.orders", "shop.public.orders");
        check("shop.public.*", r"^shop\.public\..*$");
        check("*-orders.v*", r"^.*-orders\.v.*$");
    }
}
