//! The one binary: daemon and inspector.

fn main() -> std::process::ExitCode {
    mesh_agent::cli::main()
}
