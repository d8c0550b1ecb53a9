//! What a number depends on besides the program: the machine, its load, and what each process used.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

/// The machine, as the kernel describes it.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Model of the first CPU.
    pub cpu: String,
    /// CPUs that this process may use.
    pub cores: usize,
    /// The kernel's release.
    pub kernel: String,
    /// Memory in bytes.
    pub memory_bytes: u64,
}

impl Machine {
    /// This machine. What the kernel does not tell is "unknown" or 0.
    #[must_use]
    pub fn here() -> Self {
        let cpu = read("/proc/cpuinfo")
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
            .map_or_else(|| "unknown".to_owned(), |(_, name)| name.trim().to_owned());
        Self {
            cpu,
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            memory_bytes: kibibytes(&read("/proc/meminfo"), "MemTotal:") * 1024,
        }
    }
}

/// The three load averages.
#[must_use]
pub fn load_average() -> String {
    let text = read("/proc/loadavg");
    text.split_whitespace()
        .take(3)
        .collect::<Vec<_>>()
        .join(" ")
}

/// What processes of one role used.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Usage {
    /// How many processes.
    pub processes: usize,
    /// Processor time in seconds, user and system, of all of them during the measurement.
    pub cpu_seconds: f64,
    /// The largest resident memory that any of them ever had, in bytes.
    pub peak_bytes: u64,
    /// The resident memory of the largest of them at the start, in the middle and at the end of the measurement, in
    /// bytes. The postbox's log counts where it is mapped.
    pub resident_bytes: [u64; 3],
}

/// Processor time of a process so far, in seconds, its peak memory, and its memory now. `None` when it is gone.
fn sample(pid: i32) -> Option<(f64, u64, u64)> {
    let directory = Path::new("/proc").join(pid.to_string());
    let stat = std::fs::read_to_string(directory.join("stat")).ok()?;
    let status = std::fs::read_to_string(directory.join("status")).ok()?;
    let bytes = |name| kibibytes(&status, name) * 1024;
    Some((cpu_seconds(&stat)?, bytes("VmHWM:"), bytes("VmRSS:")))
}

/// Fields 14 and 15 of `/proc/PID/stat`. The second field is the program's name, which may hold anything.
fn cpu_seconds(stat: &str) -> Option<f64> {
    let after_name = stat.rsplit_once(')')?.1;
    let mut fields = after_name.split_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    // USER_HZ is 100 on every architecture that Linux shows in /proc.
    Some((user + system) / 100.0)
}

fn kibibytes(text: &str, name: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix(name))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// Watches processes from one moment to another.
#[derive(Debug)]
pub struct Meter {
    watched: Vec<Watched>,
}

#[derive(Debug)]
struct Watched {
    role: String,
    pid: i32,
    /// Processor seconds at the beginning.
    cpu_seconds: f64,
    /// Memory at the beginning, and in the middle once that is over.
    resident_bytes: (u64, Option<u64>),
}

impl Meter {
    /// From now on.
    #[must_use]
    pub fn start(processes: &[(String, i32)]) -> Self {
        let watched = processes
            .iter()
            .filter_map(|(role, pid)| {
                let (cpu_seconds, _, resident) = sample(*pid)?;
                Some(Watched {
                    role: role.clone(),
                    pid: *pid,
                    cpu_seconds,
                    resident_bytes: (resident, None),
                })
            })
            .collect();
        Self { watched }
    }

    /// Half of the time is over. Only the first call counts.
    pub fn note_middle(&mut self) {
        for watched in &mut self.watched {
            if watched.resident_bytes.1.is_none() {
                watched.resident_bytes.1 = sample(watched.pid).map(|(.., resident)| resident);
            }
        }
    }

    /// Until now, by role. A process that ended meanwhile is left out.
    #[must_use]
    pub fn read(&self) -> BTreeMap<String, Usage> {
        let mut roles: BTreeMap<String, Usage> = BTreeMap::new();
        for watched in &self.watched {
            let Some((cpu_seconds, peak_bytes, resident)) = sample(watched.pid) else {
                continue;
            };
            let usage = roles.entry(watched.role.clone()).or_default();
            usage.processes += 1;
            usage.cpu_seconds += cpu_seconds - watched.cpu_seconds;
            usage.peak_bytes = usage.peak_bytes.max(peak_bytes);
            let (start, middle) = watched.resident_bytes;
            let moments = [start, middle.unwrap_or(resident), resident];
            for (largest, bytes) in usage.resident_bytes.iter_mut().zip(moments) {
                *largest = (*largest).max(bytes);
            }
        }
        roles
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_may_be_called_anything() {
        let stat = "42 (a) b (c) S 1 1 1 0 -1 4194304 100 0 0 0 250 50 0 0 20 0 1 0 5 1 1";
        assert_eq!(cpu_seconds(stat), Some(3.0));
        assert_eq!(cpu_seconds("nonsense"), None);
    }

    #[test]
    fn sizes_are_found_by_their_names() {
        let status = "Name:\tx\nVmPeak:\t  900 kB\nVmHWM:\t  512 kB\n";
        assert_eq!(kibibytes(status, "VmHWM:"), 512);
        assert_eq!(kibibytes(status, "VmNone:"), 0);
    }

    #[test]
    fn this_process_can_be_watched() {
        let me = i32::try_from(std::process::id()).unwrap();
        let mut meter = Meter::start(&[("me".to_owned(), me), ("gone".to_owned(), -1)]);
        meter.note_middle();
        let usage = meter.read();
        assert_eq!(usage["me"].processes, 1);
        assert!(usage["me"].peak_bytes > 0 && usage.len() == 1);
        assert!(usage["me"].resident_bytes.iter().all(|bytes| *bytes > 0));
    }
}
