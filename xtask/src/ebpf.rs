//! `cargo xtask ebpf [--check]`: builds the kernel programs. The object is committed, so that a plain `cargo build` needs
//! no kernel toolchain; `--check` proves that it comes from the sources beside it (docs/adr/0001).

mod record;
mod toolchain;
pub(crate) mod wrapper;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::deps::cargo_tools;
use crate::{deps, kernel, sh, test};
use record::Record;
use toolchain::Toolchain;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Change nothing; fail if the committed object does not come from the sources.
    #[arg(long)]
    check: bool,
}

const OBJECT: &str = "mesh-ebpf/prebuilt/mesh-ebpf.o";
const RECORD: &str = "mesh-ebpf/prebuilt/BUILD.toml";

const TARGET: &str = "bpfel-unknown-none";

pub(crate) fn run(args: &Args) -> Result<()> {
    let toolchain = choose()?;
    println!("toolchain: {}", toolchain.describe());
    let fresh = build(&toolchain)?;
    let bytes = fs::read(&fresh).with_context(|| format!("{}", fresh.display()))?;
    let record = Record {
        rustc: toolchain.rustc()?,
        llvm: toolchain.llvm()?,
        bpf_linker: toolchain.bpf_linker()?,
        sources: record::hash_sources()?,
        object: sh::sha256(&bytes)?,
    };
    if args.check {
        check(&record, &bytes)
    } else {
        install(&record, &bytes)
    }
}

/// The canonical toolchain wherever apt can bring it, else the nightly of rustup.
fn choose() -> Result<Toolchain> {
    if Toolchain::Debian.usable() {
        return Ok(Toolchain::Debian);
    }
    match deps::ensure(&[deps::Group::Kernel]) {
        Ok(()) => Ok(Toolchain::Debian),
        Err(why) if Toolchain::Nightly.usable() => {
            println!("the canonical toolchain is not to be had here: {why:#}");
            Ok(Toolchain::Nightly)
        }
        Err(why) => Err(why.context(
            "neither the canonical toolchain nor rustup's nightly (with rust-src and bpf-linker) is there",
        )),
    }
}

/// Builds the object and gives its path. Our own crates are always compiled anew: cargo would not notice another
/// bpf-linker.
fn build(toolchain: &Toolchain) -> Result<PathBuf> {
    // Next to the target folder of the workspace, not in it: another compiler, another lock.
    let target = sh::target_dir().join("kernel");
    let cargo = |arguments: &[&str]| -> Result<Command> {
        let mut cargo = toolchain.cargo();
        cargo
            .current_dir(sh::root().join("mesh-ebpf"))
            .args(arguments)
            .args(["--release", "--locked", "--target", TARGET, "--target-dir"])
            .arg(&target)
            .env("RUSTC_WRAPPER", std::env::current_exe()?)
            .env(wrapper::ENV, "1")
            .env("CARGO_ENCODED_RUSTFLAGS", rustflags().join("\x1f"));
        Ok(cargo)
    };
    sh::output(&mut cargo(&[
        "clean",
        "--package",
        "mesh-ebpf",
        "--package",
        "mesh-common",
    ])?)?;
    sh::run(&mut cargo(&["build"])?)?;
    Ok(target.join(TARGET).join("release/mesh-ebpf"))
}

/// Paths of this machine must not reach the object: two checkouts give the same bytes.
fn rustflags() -> Vec<String> {
    let remap = |from: &Path, to: &str| format!("--remap-path-prefix={}={to}", from.display());
    vec![
        format!(
            "-Clinker={}",
            cargo_tools::path(cargo_tools::BPF_LINKER).display()
        ),
        // BTF names the fields of the maps, which is what bpftool prints; it is made from the debug information.
        "-Clink-arg=--btf".to_owned(),
        "-Cdebuginfo=2".to_owned(),
        "--cfg=bpf_target_arch=\"x86_64\"".to_owned(),
        remap(&sh::root(), "/covet"),
        remap(&sh::cargo_home(), "/cargo"),
    ]
}

fn install(record: &Record, bytes: &[u8]) -> Result<()> {
    let root = sh::root();
    let changed = fs::read(root.join(OBJECT)).map_or(true, |old| old != bytes);
    fs::create_dir_all(root.join("mesh-ebpf/prebuilt"))?;
    fs::write(root.join(OBJECT), bytes)?;
    fs::write(root.join(RECORD), record.to_toml())?;
    let word = if changed { "new" } else { "the same as before" };
    println!("{OBJECT}: {} bytes, {word}\n{RECORD}: written", bytes.len());
    Ok(())
}

fn check(fresh: &Record, bytes: &[u8]) -> Result<()> {
    let text = fs::read_to_string(sh::root().join(RECORD))
        .with_context(|| format!("{RECORD} is missing; `cargo xtask ebpf` writes it"))?;
    let committed = Record::from_toml(&text).with_context(|| RECORD.to_owned())?;
    if committed.sources != fresh.sources {
        bail!(
            "the sources of the kernel programs changed after {OBJECT} was built (hash {} now, {} then); \
             run `cargo xtask ebpf` and commit what it writes",
            fresh.sources,
            committed.sources
        );
    }
    println!("sources: hash {} as recorded", fresh.sources);
    let object =
        fs::read(sh::root().join(OBJECT)).with_context(|| format!("{OBJECT} is missing"))?;
    if sh::sha256(&object)? != committed.object {
        bail!("{OBJECT} is not the object that {RECORD} records; run `cargo xtask ebpf`");
    }
    if fresh.same_tools(&committed) {
        if object != bytes {
            bail!(
                "{OBJECT} differs from what its recorded toolchain makes of the sources \
                 ({} and {} bytes); run `cargo xtask ebpf` and commit what it writes",
                object.len(),
                bytes.len()
            );
        }
        println!("object: byte for byte what the recorded toolchain makes of the sources");
        return Ok(());
    }
    println!(
        "this is not the recorded toolchain ({}), so bytes cannot be compared; running the kernel tests on what \
         was built here instead",
        committed.tools()
    );
    kernel_tests(bytes)?;
    println!(
        "object: sources match by hash; what this toolchain makes of them passes the kernel tests"
    );
    Ok(())
}

/// Runs the end-to-end tests against a fresh object, in a copy of the tree: the checkout stays as it is.
fn kernel_tests(object: &[u8]) -> Result<()> {
    sh::require_root("running the kernel tests")?;
    deps::ensure(&[deps::Group::Test])?;
    kernel::mount_bpffs()?;
    let base = sh::target_dir().join("kernel-check");
    let tree = base.join("tree");
    if tree.exists() {
        fs::remove_dir_all(&tree)?;
    }
    let files = sh::output(Command::new("git").current_dir(sh::root()).args([
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]))?;
    for file in files.split_terminator('\0') {
        let (from, to) = (sh::root().join(file), tree.join(file));
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent)?;
        }
        if from.is_file() {
            fs::copy(&from, &to)?;
        }
    }
    fs::write(tree.join(OBJECT), object)?;
    let inner = |args: &[&str]| {
        let mut cargo = sh::cargo();
        cargo
            .current_dir(&tree)
            .env("CARGO_TARGET_DIR", base.join("target"))
            .args(args);
        cargo
    };
    sh::run(&mut inner(&["build", "--workspace"]))?;
    test::workspace(inner(&[]), None)
}
