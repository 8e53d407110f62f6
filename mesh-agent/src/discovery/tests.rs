//! A directory followed through edits of every kind.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::symlink,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use super::file::{FileOptions, FileSource};
use crate::{
    api::Environment,
    catalog::{Catalog, CatalogOptions},
    model::ResourceName,
};

struct Followed {
    catalog: Arc<Catalog>,
    source: FileSource,
}

fn follow(dir: &Path, poll: Duration) -> Followed {
    let catalog = Catalog::with_options(CatalogOptions {
        node: "n1".into(),
        root_namespace: "mesh-system".into(),
        exceptions: Vec::new(),
    });
    let options = FileOptions {
        dir: dir.to_owned(),
        environment: Environment::default(),
        poll,
    };
    let source = FileSource::spawn(options, Arc::clone(&catalog)).unwrap();
    Followed { catalog, source }
}

/// A poll that the tests below do not live to see: what they see came from the watch.
const NEVER: Duration = Duration::from_secs(3600);
const DEADLINE: Duration = Duration::from_secs(10);

impl Followed {
    fn wait(&self, what: &str, until: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        while !until(self) {
            assert!(
                start.elapsed() < DEADLINE,
                "{what}: {:#?}",
                self.source.status()
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn wait_for_weight(&self, weight: u32) {
        self.wait(&format!("weight {weight}"), |followed| {
            followed.weight("a") == Some(weight)
        });
    }

    fn weight(&self, name: &str) -> Option<u32> {
        let name = ResourceName::new("shop", name);
        self.catalog
            .snapshot()
            .workload(&name)
            .map(|workload| workload.weight)
    }
}

fn workload(name: &str, address: &str, weight: u32) -> String {
    format!(
        "apiVersion: mesh.covet.dev/v1alpha1\nkind: Workload\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec: {{addresses: [{address}], weight: {weight}}}\n"
    )
}

fn replace(dir: &Path, file: &str, text: &str) {
    let staged = dir.join(format!(".{file}.tmp"));
    fs::write(&staged, text).unwrap();
    fs::rename(staged, dir.join(file)).unwrap();
}

#[test]
fn edits_by_rename_in_place_and_in_folders_are_seen() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.yaml"), workload("a", "10.0.0.1", 1)).unwrap();
    let followed = follow(dir.path(), NEVER);
    assert_eq!(
        followed.weight("a"),
        Some(1),
        "the first load is done when spawn returns"
    );

    replace(dir.path(), "a.yaml", &workload("a", "10.0.0.1", 2));
    followed.wait_for_weight(2);
    fs::write(dir.path().join("a.yaml"), workload("a", "10.0.0.1", 3)).unwrap();
    followed.wait_for_weight(3);
    // The old file moves away first, as some editors do it.
    fs::rename(dir.path().join("a.yaml"), dir.path().join("a.yaml~")).unwrap();
    fs::write(dir.path().join("a.yaml"), workload("a", "10.0.0.1", 4)).unwrap();
    followed.wait_for_weight(4);
    fs::create_dir(dir.path().join("more")).unwrap();
    fs::write(dir.path().join("more/b.yaml"), workload("b", "10.0.0.2", 7)).unwrap();
    followed.wait("a file in a new folder", |f| f.weight("b") == Some(7));
    fs::remove_file(dir.path().join("a.yaml")).unwrap();
    followed.wait("a removed file", |f| f.weight("a").is_none());
    assert_eq!(followed.source.status().resources, 1);
}

#[test]
fn a_bad_edit_changes_nothing_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.yaml"), workload("a", "10.0.0.1", 1)).unwrap();
    let followed = follow(dir.path(), NEVER);
    let version = followed.catalog.snapshot().version;

    // The good half of the edit is not applied either: a directory is one transaction.
    replace(dir.path(), "b.yaml", &workload("b", "10.0.0.1", 1));
    followed.wait("the error", |f| f.source.status().error.is_some());
    let status = followed.source.status();
    let errors = status.error.clone().unwrap();
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(errors[0].ends_with(
        "b.yaml:4:20: spec.addresses[0]: 10.0.0.1 is already the address of Workload shop/a (a.yaml:4)"
    ), "{}", errors[0]);
    assert_eq!((status.version, status.resources), (1, 1));
    assert!(status.error_since.is_some());
    assert_eq!(followed.catalog.snapshot().version, version);
    assert_eq!(followed.weight("b"), None);

    replace(dir.path(), "b.yaml", &workload("b", "10.0.0.2", 1));
    followed.wait("recovery", |f| {
        f.source.status().error.is_none() && f.weight("b") == Some(1)
    });
    assert_eq!(followed.source.status().version, 2);
}

#[test]
fn a_half_written_file_is_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.yaml");
    fs::write(&path, workload("a", "10.0.0.1", 1)).unwrap();
    let followed = follow(dir.path(), NEVER);
    let mut versions = followed.catalog.subscribe();

    // Truncated, then written in two strokes with a pause that is longer than the quiet time.
    let text = workload("a", "10.0.0.1", 2) + "---\n" + &workload("b", "10.0.0.2", 1);
    let (head, tail) = text.split_at(text.find("---").unwrap());
    let mut file = fs::File::create(&path).unwrap();
    file.write_all(head.as_bytes()).unwrap();
    std::thread::sleep(Duration::from_millis(60));
    assert_eq!(followed.weight("a"), Some(1));
    file.write_all(tail.as_bytes()).unwrap();
    drop(file);
    followed.wait_for_weight(2);
    assert_eq!(followed.weight("b"), Some(1));
    assert_eq!(*versions.borrow_and_update(), 2, "one step");
}

#[test]
fn the_swap_of_a_kubernetes_volume_is_one_step() {
    let dir = tempfile::tempdir().unwrap();
    let version = |name: &str, weight| {
        let folder = dir.path().join(name);
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("a.yaml"), workload("a", "10.0.0.1", weight)).unwrap();
        fs::write(folder.join("b.yaml"), workload("b", "10.0.0.2", weight)).unwrap();
    };
    version("..v1", 1);
    symlink("..v1", dir.path().join("..data")).unwrap();
    for file in ["a.yaml", "b.yaml"] {
        symlink(Path::new("..data").join(file), dir.path().join(file)).unwrap();
    }
    let followed = follow(dir.path(), NEVER);
    assert_eq!(followed.source.status().resources, 2, "each file once");

    version("..v2", 2);
    symlink("..v2", dir.path().join("..data_tmp")).unwrap();
    fs::rename(dir.path().join("..data_tmp"), dir.path().join("..data")).unwrap();
    fs::remove_dir_all(dir.path().join("..v1")).unwrap();
    followed.wait_for_weight(2);
    assert_eq!(followed.weight("b"), Some(2));
    assert_eq!(followed.catalog.snapshot().version, 2);
}

#[test]
fn a_directory_that_goes_and_comes_back_is_followed_again() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("mesh");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("a.yaml"), workload("a", "10.0.0.1", 1)).unwrap();
    let followed = follow(&dir, NEVER);

    fs::remove_dir_all(&dir).unwrap();
    followed.wait("the error", |f| f.source.status().error.is_some());
    assert_eq!(followed.weight("a"), Some(1), "the last good one stays");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("a.yaml"), workload("a", "10.0.0.1", 2)).unwrap();
    followed.wait_for_weight(2);
    assert_eq!(followed.source.status().error, None);
    replace(&dir, "a.yaml", &workload("a", "10.0.0.1", 3));
    followed.wait_for_weight(3);
}

#[test]
fn a_link_to_a_directory_may_be_swapped() {
    let parent = tempfile::tempdir().unwrap();
    for (name, weight) in [("one", 1), ("two", 2)] {
        fs::create_dir(parent.path().join(name)).unwrap();
        fs::write(
            parent.path().join(name).join("a.yaml"),
            workload("a", "10.0.0.1", weight),
        )
        .unwrap();
    }
    let link = parent.path().join("mesh");
    symlink("one", &link).unwrap();
    let followed = follow(&link, NEVER);
    symlink("two", parent.path().join("new")).unwrap();
    fs::rename(parent.path().join("new"), &link).unwrap();
    followed.wait_for_weight(2);
    replace(
        &parent.path().join("two"),
        "a.yaml",
        &workload("a", "10.0.0.1", 3),
    );
    followed.wait_for_weight(3);
}

#[test]
fn an_emptied_directory_is_believed_at_the_second_look() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.yaml");
    fs::write(&path, workload("a", "10.0.0.1", 1)).unwrap();
    let followed = follow(dir.path(), NEVER);
    let mut versions = followed.catalog.subscribe();
    fs::remove_file(&path).unwrap();
    fs::write(&path, workload("a", "10.0.0.1", 2)).unwrap();
    followed.wait_for_weight(2);
    assert_eq!(*versions.borrow_and_update(), 2, "never empty in between");
    fs::remove_file(&path).unwrap();
    followed.wait("empty", |f| f.weight("a").is_none());
    assert_eq!(followed.source.status().resources, 0);
}

#[test]
fn what_no_event_tells_is_found_by_polling() {
    let outside = tempfile::tempdir().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let target = outside.path().join("real.yaml");
    fs::write(&target, workload("a", "10.0.0.1", 1)).unwrap();
    symlink(&target, dir.path().join("a.yaml")).unwrap();
    let followed = follow(dir.path(), Duration::from_millis(20));
    fs::write(&target, workload("a", "10.0.0.1", 2)).unwrap();
    followed.wait_for_weight(2);
}

#[test]
fn a_bad_start_is_told_and_mended() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.yaml"), "apiVersion: v1\nkind: Sevice\n").unwrap();
    let followed = follow(dir.path(), NEVER);
    let status = followed.source.status();
    assert!(status.error.is_some());
    assert_eq!((status.version, status.last_applied), (0, None));
    replace(dir.path(), "a.yaml", &workload("a", "10.0.0.1", 1));
    followed.wait_for_weight(1);
}
