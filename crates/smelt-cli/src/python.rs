//! Runs a Python program of smelt's in the user's interpreter.

use std::io::{Read, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

/// Importing a library takes seconds; more than this, and it hangs.
const LIMIT: Duration = Duration::from_mins(5);

/// How often a running program is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// The last lines of what a failed program said are shown, no more.
const SAID: usize = 12;

/// Gives `input` to a program and returns what it writes to its standard output.
pub(crate) fn run(python: &Path, program: &str, input: String) -> anyhow::Result<String> {
    let file = program_file(program)?;
    let mut child = Command::new(python)
        .arg(file.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run `{}`; name a Python with `--python`", python.display()))?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    // A program that ends early closes its input; its own words matter more than that.
    let writer = thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
    let (out, talk) = (reader(child.stdout.take()), reader(child.stderr.take()));
    let success = wait(&mut child)?;
    let join = |handle: thread::JoinHandle<String>| handle.join().unwrap_or_default();
    let _ = writer.join();
    let (out, talk) = (join(out), join(talk));
    if !success {
        let lines: Vec<&str> = talk.lines().collect();
        let last = lines[lines.len().saturating_sub(SAID)..].join("\n  ");
        bail!("`{}` failed:\n  {last}", python.display());
    }
    Ok(out)
}

/// The program as a file: it is too long for an argument on some systems.
fn program_file(program: &str) -> anyhow::Result<tempfile::NamedTempFile> {
    let mut file = tempfile::Builder::new().prefix("smelt-").suffix(".py").tempfile()?;
    file.write_all(program.as_bytes())?;
    file.flush()?;
    Ok(file)
}

fn reader(stream: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut stream) = stream {
            // What arrived before an error is still worth having.
            let _ = stream.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn wait(child: &mut Child) -> anyhow::Result<bool> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status.success());
        }
        if start.elapsed() > LIMIT {
            child.kill()?;
            child.wait()?;
            bail!("the library took more than {} s and was stopped", LIMIT.as_secs());
        }
        thread::sleep(LOOK);
    }
}
