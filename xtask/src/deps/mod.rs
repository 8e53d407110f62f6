//! `cargo xtask deps [--check] [GROUP...]`: installs what the other commands need and says why. Every other command
//! calls [`ensure`] for just the groups it needs.

mod apt;
pub(crate) mod cargo_tools;
pub(crate) mod envoy;
mod groups;
mod istio;

use anyhow::{Result, bail};

pub(crate) use groups::Group;
use groups::Need;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only say what is missing; fail if anything is.
    #[arg(long)]
    check: bool,
    /// What it is for; everything when not given.
    #[arg(value_enum)]
    groups: Vec<Group>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let groups = if args.groups.is_empty() {
        Group::ALL.to_vec()
    } else {
        args.groups.clone()
    };
    if args.check {
        check(&groups)
    } else {
        install(&groups, true)
    }
}

/// Installs what is missing of these groups; silent when nothing is.
pub(crate) fn ensure(groups: &[Group]) -> Result<()> {
    install(groups, false)
}

/// Whether everything of a group is there.
pub(crate) fn present(group: Group) -> bool {
    group.needs().iter().all(|need| need.state().0)
}

fn check(groups: &[Group]) -> Result<()> {
    let mut missing = 0;
    for group in groups {
        println!("{}: {}", group.name(), group.why());
        for need in group.needs() {
            let (there, detail) = need.state();
            missing += usize::from(!there);
            println!(
                "  {} {:<26} {}{}",
                mark(there),
                need.name(),
                need.why(),
                detail
            );
        }
    }
    if missing > 0 {
        bail!("{missing} missing; `cargo xtask deps` installs them");
    }
    println!("nothing is missing");
    Ok(())
}

fn install(groups: &[Group], verbose: bool) -> Result<()> {
    let mut packages = Vec::new();
    let mut others = Vec::new();
    for group in groups {
        let missing: Vec<Need> = group
            .needs()
            .into_iter()
            .filter(|need| !need.state().0)
            .collect();
        if verbose || !missing.is_empty() {
            println!("{}: {}", group.name(), group.why());
        }
        if missing.is_empty() && verbose {
            println!("  all there");
        }
        for need in missing {
            println!("  to install: {:<26} {}", need.name(), need.why());
            match need {
                Need::Debian { name, .. } if packages.contains(&name) => {}
                Need::Debian { name, .. } => packages.push(name),
                other => others.push(other),
            }
        }
    }
    if !packages.is_empty() {
        apt::install(&packages)?;
    }
    for need in others {
        match need {
            Need::Debian { .. } => {}
            Need::Cargo(tool) => cargo_tools::install(tool)?,
            Need::Envoy => envoy::install()?,
            Need::Istio => istio::install()?,
        }
    }
    Ok(())
}

fn mark(there: bool) -> &'static str {
    if there { "there  " } else { "MISSING" }
}
