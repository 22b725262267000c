//! `undervisor test`: runs suites of multiboot test guests that speak isa-debug-exit and PASS/FAIL/SKIP lines.
//!
//! Each test runs in a process of its own (this same program's `run`), so that tests share nothing and any number run at once.

mod config;
mod junit;
mod process;
mod verdict;

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use crate::error::{Failure, TEST_FAILED};
use crate::options::TestOptions;

pub use config::Entry;
use verdict::{Report, Verdict};

/// One test to run.
#[derive(Clone, Debug)]
pub struct Job {
    pub entry: Entry,
    pub file: PathBuf,
}

/// Run the suite; the exit code says whether anything failed.
pub fn run(options: &TestOptions) -> Result<u8, Failure> {
    if let Some(cpu) = &options.cpu {
        crate::wiring::cpu(cpu)?;
    }
    let mut jobs = select(options)?;
    if let Some((k, n)) = options.shard {
        jobs = jobs.into_iter().skip(k - 1).step_by(n).collect();
    }
    if options.list {
        let mut out = String::new();
        for job in &jobs {
            let arguments = process::arguments(job, options).join(" ");
            out.push_str(&format!("{:<32} undervisor {arguments}\n", job.entry.name));
        }
        let _ = io::stdout().lock().write_all(out.as_bytes());
        return Ok(0);
    }
    if let Some(dir) = &options.logs {
        std::fs::create_dir_all(dir).map_err(|source| Failure::Write { path: dir.clone(), source })?;
    }
    let start = Instant::now();
    let reports = run_all(&jobs, options)?;
    if let Some(path) = &options.junit {
        std::fs::write(path, junit::report(&reports)).map_err(|source| Failure::Write { path: path.clone(), source })?;
    }
    let _ = io::stdout().lock().write_all(summary(&reports, start.elapsed().as_secs_f64()).as_bytes());
    Ok(if reports.iter().any(|r| r.verdict.failed()) { TEST_FAILED } else { 0 })
}

/// The tests that the options name, in order.
fn select(options: &TestOptions) -> Result<Vec<Job>, Failure> {
    let mut jobs = Vec::new();
    let mut entries = Vec::new();
    let mut folder = PathBuf::new();
    if let Some(path) = &options.config {
        let text = std::fs::read_to_string(path).map_err(|source| Failure::Read { path: path.clone(), source })?;
        entries = config::parse(path, &text)?;
        folder = path.parent().unwrap_or(Path::new("")).to_owned();
    }
    let wanted = |e: &Entry| e.on_x86_64() && options.groups.as_deref().is_none_or(|g| e.in_groups(g));
    let job = |e: &Entry| Job { entry: e.clone(), file: folder.join(&e.file) };
    if options.files.is_empty() {
        jobs.extend(entries.iter().filter(|e| wanted(e)).map(job));
    }
    for name in &options.files {
        if let Some(entry) = entries.iter().find(|e| e.name == *name) {
            jobs.push(job(entry));
            continue;
        }
        let path = PathBuf::from(name);
        // Every entry that uses this file, if the configuration knows it.
        let base = path.file_name().map(|f| f.to_string_lossy().into_owned()).unwrap_or_default();
        let mut of_file = entries.iter().filter(|e| e.file == base && wanted(e)).peekable();
        if of_file.peek().is_some() {
            jobs.extend(of_file.map(|e| Job { entry: e.clone(), file: path.clone() }));
            continue;
        }
        let stem = path.file_stem().map(|f| f.to_string_lossy().into_owned()).unwrap_or_default();
        let entry = Entry { name: stem, file: name.clone(), arguments: options.append.clone(), ..Entry::default() };
        jobs.push(Job { entry, file: path });
    }
    Ok(jobs)
}

fn run_all(jobs: &[Job], options: &TestOptions) -> Result<Vec<Report>, Failure> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let workers = options.jobs.unwrap_or(cores).clamp(1, jobs.len().max(1));
    let next = AtomicUsize::new(0);
    let done = AtomicUsize::new(0);
    let results: Mutex<BTreeMap<usize, Report>> = Mutex::new(BTreeMap::new());
    let error: Mutex<Option<Failure>> = Mutex::new(None);
    let live = io::stderr().is_terminal();
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some((i, job)) = Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|i| Some((i, jobs.get(i)?))) {
                    match process::run(job, options) {
                        Ok(report) => {
                            let n = done.fetch_add(1, Ordering::Relaxed) + 1;
                            let line = report.line();
                            let mut stdout = io::stdout().lock();
                            if live {
                                let _ = write!(io::stderr().lock(), "\r\x1b[K");
                            }
                            let _ = writeln!(stdout, "{line}");
                            let _ = stdout.flush();
                            if live {
                                let _ = write!(io::stderr().lock(), "{n} of {} tests done\r", jobs.len());
                            }
                            if let Ok(mut results) = results.lock() {
                                results.insert(i, report);
                            }
                        }
                        Err(e) => {
                            if let Ok(mut slot) = error.lock() {
                                slot.get_or_insert(e);
                            }
                            next.store(jobs.len(), Ordering::Relaxed);
                        }
                    }
                }
            });
        }
    });
    if let Some(failure) = error.into_inner().unwrap_or_default() {
        return Err(failure);
    }
    Ok(results.into_inner().unwrap_or_default().into_values().collect())
}

fn summary(reports: &[Report], seconds: f64) -> String {
    let count = |f: fn(&Verdict) -> bool| reports.iter().filter(|r| f(&r.verdict)).count();
    let lines = |f: fn(&Report) -> usize| reports.iter().map(f).sum::<usize>();
    let mut out = String::from("\n");
    let bad: Vec<_> = reports.iter().filter(|r| r.verdict.failed()).collect();
    if !bad.is_empty() {
        out.push_str("Failed:\n");
        for r in &bad {
            out.push_str(&format!("  {}\n", r.line()));
            for line in r.failures.iter().take(10) {
                out.push_str(&format!("      {line}\n"));
            }
            if r.failures.len() > 10 {
                out.push_str(&format!("      and {} more\n", r.failures.len() - 10));
            }
        }
    }
    out.push_str(&format!(
        "{} tests: {} passed, {} skipped, {} failed; {} checks passed, {} failed, {} skipped; {seconds:.1} s\n",
        reports.len(),
        count(|v| *v == Verdict::Pass),
        count(|v| matches!(v, Verdict::Skip(_))),
        bad.len(),
        lines(|r| r.passed),
        lines(|r| r.failures.len()),
        lines(|r| r.skips.len()),
    ));
    out
}
