//! The root of the cgroup2 hierarchy.

use std::{fs, path::PathBuf};

use super::error::CaptureError;

/// Where cgroup2 is mounted: the whole hierarchy if there are several mounts (pure: /sys/fs/cgroup, hybrid:
/// /sys/fs/cgroup/unified).
pub(super) fn find() -> Result<PathBuf, CaptureError> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")
        .map_err(CaptureError::io("cannot read /proc/self/mountinfo"))?;
    pick(&mounts).ok_or(CaptureError::NoCgroup2)
}

/// mountinfo: id parent major:minor root mountpoint options optional... - type source super-options
pub(super) fn pick(mountinfo: &str) -> Option<PathBuf> {
    let mut candidates: Vec<(&str, String)> = mountinfo
        .lines()
        .filter_map(|line| {
            let (head, tail) = line.split_once(" - ")?;
            (tail.split(' ').next() == Some("cgroup2")).then_some(())?;
            let mut fields = head.split(' ').skip(3);
            Some((fields.next()?, unescape(fields.next()?)))
        })
        .collect();
    // A bind mount of a subtree has another root than "/": programs attached there would miss the other cgroups.
    candidates.sort_by_key(|(root, point)| (*root != "/", point.len()));
    Some(PathBuf::from(candidates.into_iter().next()?.1))
}

fn unescape(field: &str) -> String {
    field
        .replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\012", "\n")
        .replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::pick;

    #[test]
    fn hybrid_pure_and_none() {
        let hybrid = "25 22 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                      26 25 0:23 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      35 25 0:32 / /sys/fs/cgroup/unified rw,relatime shared:3 - cgroup2 cgroup2 rw\n";
        assert_eq!(pick(hybrid), Some("/sys/fs/cgroup/unified".into()));
        let pure = "25 22 0:22 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(pick(pure), Some("/sys/fs/cgroup".into()));
        assert_eq!(pick("25 22 0:22 / /proc rw - proc proc rw\n"), None);
    }

    #[test]
    fn the_whole_hierarchy_before_a_part_of_it() {
        let both = "35 25 0:32 /kubepods /a rw - cgroup2 cgroup2 rw\n\
                    36 25 0:32 / /sys/fs/cgroup\\040x rw - cgroup2 cgroup2 rw\n";
        assert_eq!(pick(both), Some("/sys/fs/cgroup x".into()));
    }
}
