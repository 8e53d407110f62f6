//! The directory loader: which files it reads, what it keeps, how it fails.

use std::{fs, path::Path, sync::Arc};

use crate::api::{Environment, Loader, load_dir, parse_bytes};

fn namespace(name: &str) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n")
}

fn loader(dir: &Path) -> Loader {
    Loader::new(dir, Environment::default())
}

#[test]
fn yaml_files_are_read_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("a/b")).unwrap();
    fs::create_dir(dir.path().join(".hidden")).unwrap();
    for (file, name) in [("x.yaml", "x"), ("a/b/y.yml", "y"), ("z.json", "z")] {
        fs::write(dir.path().join(file), namespace(name)).unwrap();
    }
    for junk in [
        ".x.yaml.swp",
        ".#x.yaml",
        "x.yaml~",
        "README.md",
        ".hidden/q.yaml",
    ] {
        fs::write(dir.path().join(junk), "{ not read").unwrap();
    }
    // A loop of links must not be followed for ever.
    std::os::unix::fs::symlink(dir.path(), dir.path().join("a/loop")).unwrap();
    let (config, _) = load_dir(dir.path()).unwrap();
    let mut names: Vec<_> = config
        .namespaces
        .iter()
        .map(|n| n.name.name.to_string())
        .collect();
    names.sort();
    names.dedup();
    assert_eq!(names, ["x", "y", "z"]);
}

#[test]
fn unchanged_documents_keep_their_identity() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("all.yaml");
    fs::write(&path, format!("{}---\n{}", namespace("a"), namespace("b"))).unwrap();
    fs::write(dir.path().join("other.yaml"), namespace("c")).unwrap();
    let mut loader = loader(dir.path());
    let first = loader.load().unwrap().config;
    fs::write(
        &path,
        format!("# moved\n---\n{}---\n{}", namespace("a2"), namespace("b")),
    )
    .unwrap();
    let second = loader.load().unwrap().config;
    assert_eq!(&*second.namespaces[0].name.name, "a2");
    assert!(Arc::ptr_eq(&first.namespaces[1], &second.namespaces[1]));
    assert!(Arc::ptr_eq(&first.namespaces[2], &second.namespaces[2]));
}

#[test]
fn a_second_write_of_the_same_size_at_once_is_seen() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.yaml");
    let mut loader = loader(dir.path());
    for round in 0..50 {
        let name = format!("n{}", round % 10);
        fs::write(&path, namespace(&name)).unwrap();
        let config = loader.load().unwrap().config;
        assert_eq!(&*config.namespaces[0].name.name, name.as_str());
    }
}

#[test]
fn lines_are_those_of_the_file() {
    let text = format!(
        "# one\n{}---\n\n---\n# two\n{}",
        namespace("a"),
        namespace("B")
    );
    let Err(errors) = parse_bytes("f", text.as_bytes()) else {
        panic!("accepted");
    };
    assert_eq!((errors[0].line, errors[0].column), (11, 18));
}

#[test]
fn what_cannot_be_read_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("none");
    let errors = load_dir(&missing).unwrap_err();
    assert_eq!(errors.len(), 1);
    assert!(
        errors[0]
            .to_string()
            .contains("none: folder cannot be read: No such file"),
        "{}",
        errors[0]
    );

    fs::write(
        dir.path().join("a.yaml"),
        b"apiVersion: v1\nkind: \xff\xfe\n",
    )
    .unwrap();
    std::os::unix::fs::symlink("/nonexistent-target", dir.path().join("b.yaml")).unwrap();
    let errors = load_dir(dir.path()).unwrap_err();
    assert!(
        errors[0]
            .to_string()
            .ends_with("b.yaml: cannot be read: No such file or directory (os error 2)"),
        "{}",
        errors[0]
    );
    fs::remove_file(dir.path().join("b.yaml")).unwrap();
    let errors = load_dir(dir.path()).unwrap_err();
    assert!(
        errors[0]
            .to_string()
            .ends_with("a.yaml:2:7: not valid UTF-8"),
        "{}",
        errors[0]
    );
}

#[test]
fn the_hosts_network_namespace_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let workload = |name: &str, address: u8, netns: &str| {
        format!(
            "apiVersion: mesh.covet.dev/v1alpha1\nkind: Workload\nmetadata: {{name: {name}}}\n\
             spec: {{addresses: [10.0.0.{address}], netns: {netns}}}\n---\n"
        )
    };
    let text =
        workload("a", 1, "/proc/self/ns/net") + &workload("b", 2, "/run/netns/cm-never-there");
    fs::write(dir.path().join("a.yaml"), &text).unwrap();
    let errors = load_dir(dir.path()).unwrap_err();
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert_eq!(
        errors[0].message,
        "/proc/self/ns/net is the network namespace of the host itself"
    );
    assert_eq!(
        (errors[0].line, errors[0].field.as_str()),
        (4, "spec.netns")
    );

    // Two paths to one namespace: any two files will do as long as the inode is the same.
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    fs::write(&one, "").unwrap();
    fs::hard_link(&one, &two).unwrap();
    let text = workload("a", 1, &one.display().to_string())
        + &workload("b", 2, &two.display().to_string());
    fs::write(dir.path().join("a.yaml"), text).unwrap();
    let errors = load_dir(dir.path()).unwrap_err();
    assert!(
        errors[0]
            .message
            .contains("is the same network namespace as"),
        "{}",
        errors[0]
    );

    fs::write(
        dir.path().join("a.yaml"),
        workload("b", 2, "/run/netns/cm-never-there"),
    )
    .unwrap();
    let (_, warnings) = load_dir(dir.path()).unwrap();
    assert_eq!(
        warnings[0].message,
        "/run/netns/cm-never-there does not exist yet: the workload is enrolled when it does"
    );
}
