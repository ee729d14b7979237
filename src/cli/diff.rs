//! What differs between two texts, line by line.

/// The lines that are only in `old` with `-` before them, those only in `new` with `+`, in place; empty when both are
/// the same.
pub(super) fn difference(old: &str, new: &str) -> String {
    let (old, new): (Vec<&str>, Vec<&str>) = (old.lines().collect(), new.lines().collect());
    // The length of the longest common rest from each pair of lines on.
    let mut common = vec![vec![0usize; new.len() + 1]; old.len() + 1];
    for (i, left) in old.iter().enumerate().rev() {
        for (j, right) in new.iter().enumerate().rev() {
            common[i][j] =
                if left == right { common[i + 1][j + 1] + 1 } else { common[i + 1][j].max(common[i][j + 1]) };
        }
    }
    let (mut i, mut j, mut text) = (0, 0, String::new());
    while i < old.len() || j < new.len() {
        if i < old.len() && j < new.len() && old[i] == new[j] {
            (i, j) = (i + 1, j + 1);
        } else if j == new.len() || i < old.len() && common[i + 1][j] >= common[i][j + 1] {
            text.push_str(&format!("- {}\n", old[i]));
            i += 1;
        } else {
            text.push_str(&format!("+ {}\n", new[j]));
            j += 1;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_differ_are_shown_in_place() {
        assert_eq!(difference("a\nb\n", "a\nb\n"), "");
        insta::assert_snapshot!(difference("a\nb\nc\nd\n", "a\nB\nc\nd\ne\n"), @"
        - b
        + B
        + e
        ");
        insta::assert_snapshot!(difference("", "a\n"), @"+ a");
    }
}
