//! What is committed beside the code: JSON Schemas, samples, and the reference page. Set `MESH_BLESS=1` to write the
//! schemas anew: `MESH_BLESS=1 cargo test -p mesh-agent published`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value as Json;

use crate::api::{load_dir, parse_bytes, schema::Kind};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[test]
fn schemas_are_those_of_the_types() {
    let mut stale = Vec::new();
    for kind in Kind::ALL {
        let name = format!("docs/reference/schema/{}.json", kind.name().to_lowercase());
        let path = root().join(&name);
        let text = serde_json::to_string_pretty(&kind.schema()).unwrap() + "\n";
        if std::env::var_os("MESH_BLESS").is_some() {
            fs::write(&path, &text).unwrap();
        } else if fs::read_to_string(&path).ok().as_deref() != Some(&text) {
            stale.push(name);
        }
    }
    assert!(
        stale.is_empty(),
        "{stale:?} are stale: MESH_BLESS=1 cargo test -p mesh-agent published"
    );
}

#[test]
fn samples_load_without_a_word() {
    let (config, warnings) = match load_dir(&root().join("deploy/samples")) {
        Ok(loaded) => loaded,
        Err(errors) => panic!("{errors:#?}"),
    };
    let warnings: Vec<String> = warnings.iter().map(ToString::to_string).collect();
    assert!(warnings.is_empty(), "{warnings:#?}");
    assert_eq!(config.services.len(), 2);
    assert_eq!(config.mesh_policies.len(), 3);
}

/// What a reader copies from the documentation is accepted as it stands.
#[test]
fn examples_in_the_documentation_load() {
    let mut pages = vec![root().join("README.md")];
    let mut folders = vec![root().join("docs")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.extension() {
                _ if path.is_dir() => folders.push(path),
                Some(extension) if extension == "md" => pages.push(path),
                _ => {}
            }
        }
    }
    let (mut examples, mut wrong) = (0, Vec::new());
    for page in pages {
        let text = fs::read_to_string(&page).unwrap();
        for block in text.split("```yaml\n").skip(1) {
            let block = block.split("```").next().unwrap_or_default();
            examples += 1;
            if let Err(errors) = parse_bytes(&page.to_string_lossy(), block.as_bytes()) {
                wrong.push(format!("{block}\n{errors:#?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    assert!(examples >= 7, "only {examples} examples were found");
}

/// Every field that a user may write stands in the reference, in backquotes.
#[test]
fn the_reference_names_every_field() {
    fn fields(schema: &Json, found: &mut Vec<String>) {
        match schema {
            Json::Object(object) => {
                if let Some(Json::Object(properties)) = object.get("properties") {
                    found.extend(properties.keys().cloned());
                }
                object.values().for_each(|value| fields(value, found));
            }
            Json::Array(items) => items.iter().for_each(|item| fields(item, found)),
            _ => {}
        }
    }
    let reference = root().join("docs/reference");
    let mut page = fs::read_to_string(reference.join("resources.md")).unwrap();
    for kind in Kind::ALL {
        let own = reference.join(format!("{}.md", kind.name().to_lowercase()));
        page += &fs::read_to_string(own).unwrap_or_default();
    }
    let mut missing = Vec::new();
    for kind in Kind::ALL {
        let mut found = Vec::new();
        fields(&kind.schema(), &mut found);
        for field in found {
            let named = [
                format!("`{field}`"),
                format!(".{field}`"),
                format!(".{field}[]`"),
            ];
            if !named.iter().any(|name| page.contains(name.as_str())) {
                missing.push(format!("{}: {field}", kind.name()));
            }
        }
    }
    missing.dedup();
    assert!(missing.is_empty(), "{missing:#?}");
}
