//! What the kernel holds for a node, as bpftool shows it: the tests look at pinned maps from outside the agent.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

use crate::prereq;

/// Folder of the pinned objects of a node: `vN`, by the version of their layouts.
pub fn pins(node: &str) -> PathBuf {
    let node = Path::new("/sys/fs/bpf/mesh").join(node);
    let versions = std::fs::read_dir(&node).into_iter().flatten().flatten();
    let newest = versions.map(|entry| entry.path()).max();
    newest.unwrap_or_else(|| node.join("v0"))
}

/// Dumps a pinned map; each entry has `key` and `value`, with field names from BTF.
pub fn dump(node: &str, map: &str) -> Vec<Value> {
    let all = bpftool(&[
        "map",
        "dump",
        "pinned",
        &find(node, map).display().to_string(),
    ]);
    let Value::Array(entries) = all else {
        panic!("bpftool map dump of {map}: not an array: {all}");
    };
    entries
        .into_iter()
        // One that was deleted while bpftool walked the map: it has no value, but says `Can't lookup element`.
        .filter(|entry| entry["value"].get("error").is_none())
        .map(|mut entry| match entry.get_mut("formatted") {
            Some(named) => named.take(),
            None => entry,
        })
        .collect()
}

/// The pin of a map, wherever under the node's folder.
pub fn find(node: &str, map: &str) -> PathBuf {
    fn search(dir: &Path, name: &str) -> Option<PathBuf> {
        let entries: Vec<_> = std::fs::read_dir(dir).ok()?.flatten().collect();
        entries
            .iter()
            .find(|e| e.file_name().to_str() == Some(name))
            .map(std::fs::DirEntry::path)
            .or_else(|| entries.iter().find_map(|e| search(&e.path(), name)))
    }
    search(&pins(node), map)
        .unwrap_or_else(|| panic!("no map {map} pinned under {}", pins(node).display()))
}

fn bpftool(args: &[&str]) -> Value {
    prereq::programs(&["bpftool"]);
    let bin = prereq::find("bpftool").expect("just checked");
    let out = Command::new(bin)
        .arg("-j")
        .args(args)
        .output()
        .expect("run bpftool");
    assert!(
        out.status.success(),
        "bpftool {}: {}{}",
        args.join(" "),
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
    serde_json::from_slice(&out.stdout).expect("bpftool speaks JSON")
}
