//! Which keys are looked at: a part of them by hash, so that a sample is the same in every run, and what does not fit
//! into memory is looked at in parts.

/// The keys whose hash is from one number to another, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slice {
    first: u64,
    last: u64,
}

impl Slice {
    pub(super) const WHOLE: Slice = Slice { first: 0, last: u64::MAX };

    /// About `wanted` of so many keys; all of them, where that is not fewer.
    pub(super) fn sample(wanted: u64, of: u64) -> Slice {
        if wanted >= of {
            return Slice::WHOLE;
        }
        let share = (u128::from(u64::MAX) + 1) * u128::from(wanted.max(1)) / u128::from(of);
        Slice { first: 0, last: u64::try_from(share).unwrap_or(u64::MAX).saturating_sub(1) }
    }

    pub(super) fn holds(self, hash: u64) -> bool {
        (self.first..=self.last).contains(&hash)
    }

    /// How much of all keys it is, from 0 to 1.
    pub(super) fn share(self) -> f64 {
        (self.last - self.first) as f64 / u64::MAX as f64
    }

    /// The same keys in so many parts.
    pub(super) fn parts(self, count: u64) -> Vec<Slice> {
        let width = u128::from(self.last - self.first) + 1;
        let count = u128::from(count.max(1)).min(width);
        let bound = |part: u128| (u128::from(self.first) + width * part / count) as u64;
        (0..count)
            .map(|part| Slice {
                first: bound(part),
                last: if part + 1 == count { self.last } else { bound(part + 1) - 1 },
            })
            .collect()
    }

    /// Both halves; `None` when it is a single hash.
    pub(super) fn halves(self) -> Option<[Slice; 2]> {
        self.parts(2).try_into().ok()
    }
}

/// Where a key lies among all, by the seed.
pub(super) fn hash(seed: u64, key: &[u8]) -> u64 {
    // FNV is weak in its high bits, which decide here, so they are stirred.
    let mut hash = crate::fingerprint::hash([&seed.to_be_bytes()[..], key]);
    for multiplier in [0xbf58_476d_1ce4_e5b9u64, 0x94d0_49bb_1331_11eb] {
        hash = (hash ^ (hash >> 30)).wrapping_mul(multiplier);
    }
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_a_slice_without_overlap() {
        for slice in [Slice::WHOLE, Slice::sample(10, 1000), Slice { first: 7, last: 9 }] {
            for count in [1, 2, 3, 7] {
                let parts = slice.parts(count);
                assert_eq!((parts[0].first, parts[parts.len() - 1].last), (slice.first, slice.last), "{parts:?}");
                assert!(parts.windows(2).all(|pair| pair[0].last + 1 == pair[1].first), "{parts:?}");
            }
        }
        assert_eq!(Slice { first: 3, last: 3 }.halves(), None);
        assert_eq!(Slice { first: 3, last: 4 }.halves().map(|halves| halves.map(|half| half.first)), Some([3, 4]));
    }

    #[test]
    fn a_sample_is_about_as_large_as_wanted_and_the_same_each_time() {
        let keys =
            |slice: Slice, seed| (0..100_000u64).filter(|key| slice.holds(hash(seed, &key.to_be_bytes()))).count();
        let slice = Slice::sample(1000, 100_000);
        for seed in 0..3 {
            let found = keys(slice, seed);
            assert!((800..1200).contains(&found), "{found}");
            assert_eq!(found, keys(slice, seed));
        }
        assert_eq!(keys(Slice::sample(100_000, 100_000), 0), 100_000);
        assert_eq!(hash(1, b"a"), hash(1, b"a"));
        assert_ne!(hash(1, b"a"), hash(2, b"a"));
    }
}
