//! The project's own commands: `cargo xtask test` is what a contributor and the CI run.
//!
//! Plain Rust on std, so that it compiles in a moment and runs wherever smelt builds.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

const HELP: &str = "\
cargo xtask test          everything below, fast things first
cargo xtask lint          format, clippy, documentation, dependencies
cargo xtask unit          the Rust tests
cargo xtask conformance   the tests against stock mlx-lm, in an environment of their own;
                          further arguments go to pytest
cargo xtask kills [N]     kill the program at N random moments (200) and compare what it writes in the end
cargo xtask deny          licences and sources of dependencies (needs cargo-deny)
";

/// The Python environment of the conformance tests.
const VENV: &str = ".venv";

const REQUIREMENTS: &str = "tests/conformance/requirements.txt";

type Done = Result<(), String>;

fn main() -> ExitCode {
    let mut args = env::args().skip(1);
    let task = args.next().unwrap_or_default();
    let rest: Vec<String> = args.collect();
    match run(&task, &rest) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            report(&format!("failed: {problem}"));
            ExitCode::FAILURE
        }
    }
}

fn run(task: &str, rest: &[String]) -> Done {
    env::set_current_dir(root()).map_err(|error| error.to_string())?;
    match task {
        "test" => lint().and_then(|()| unit()).and_then(|()| conformance(rest)),
        "lint" => lint(),
        "unit" => unit(),
        "conformance" => conformance(rest),
        "kills" => kills(rest),
        "deny" => cargo(&["deny", "check", "bans", "licenses", "sources"]),
        _ => Err(format!("no such task\n\n{HELP}")),
    }
}

/// The workspace's root: the parent of this package's directory.
fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

fn lint() -> Done {
    cargo(&["fmt", "--all", "--check"])?;
    cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])?;
    step(
        "cargo doc",
        Command::new("cargo")
            .args(["doc", "--workspace", "--no-deps", "--quiet"])
            .env("RUSTDOCFLAGS", "-D warnings"),
    )?;
    let has_deny =
        Command::new("cargo").args(["deny", "--version"]).output().is_ok_and(|out| out.status.success());
    if has_deny {
        cargo(&["deny", "check", "bans", "licenses", "sources"])
    } else {
        report("skipped: cargo deny is not installed (`cargo install cargo-deny`)");
        Ok(())
    }
}

fn unit() -> Done {
    cargo(&["test", "--workspace", "--quiet"])
}

fn kills(rest: &[String]) -> Done {
    let count = rest.first().map_or("200", String::as_str);
    let mut command = Command::new("cargo");
    command.args([
        "test",
        "--release",
        "--package",
        "mlx-smelt",
        "--test",
        "cli",
        "killed",
        "--",
        "--nocapture",
    ]);
    step(&format!("{count} kills"), command.env("SMELT_KILLS", count))
}

fn conformance(pytest: &[String]) -> Done {
    cargo(&["build", "--release", "--workspace", "--examples", "--bins"])?;
    let python = environment()?;
    step(
        "pytest",
        Command::new(python)
            .args(["-m", "pytest", "-q", "tests/conformance", "tests/discovery"])
            .args(pytest),
    )
}

/// Makes the Python environment, or takes the one that these requirements made before.
fn environment() -> Result<PathBuf, String> {
    let bin = if cfg!(windows) { "Scripts" } else { "bin" };
    let python = Path::new(VENV).join(bin).join("python");
    let wanted = fs::read(REQUIREMENTS).map_err(|error| format!("{REQUIREMENTS}: {error}"))?;
    let stamp = Path::new(VENV).join("requirements.txt");
    if fs::read(&stamp).is_ok_and(|made| made == wanted) {
        return Ok(python);
    }
    let system = env::var("PYTHON").unwrap_or_else(|_| "python3".to_owned());
    step("python -m venv", Command::new(system).args(["-m", "venv", "--clear", VENV]))?;
    step("pip install", Command::new(&python).args(["-m", "pip", "install", "--quiet", "-r", REQUIREMENTS]))?;
    fs::write(&stamp, wanted).map_err(|error| error.to_string())?;
    Ok(python)
}

fn cargo(args: &[&str]) -> Done {
    step(&format!("cargo {}", args.join(" ")), Command::new("cargo").args(args))
}

fn step(name: &str, command: &mut Command) -> Done {
    report(name);
    let start = Instant::now();
    let status = command.status().map_err(|error| format!("{name}: {error}"))?;
    if !status.success() {
        return Err(name.to_owned());
    }
    report(&format!("{name}: {:.0} s", start.elapsed().as_secs_f64()));
    Ok(())
}

#[expect(clippy::print_stderr, reason = "a developer's tool, without colours or data of its own")]
fn report(text: &str) {
    eprintln!("xtask: {text}");
}
