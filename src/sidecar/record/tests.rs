use super::*;
use crate::domain::time::{Now, Uptime};
use proptest::prelude::*;

#[derive(Debug)]
struct StillClock;

impl Clock for StillClock {
    fn now(&self) -> Now {
        Now { wall: Timestamp::from_seconds(0), uptime: Uptime::from_micros(7) }
    }
}

fn open(directory: &std::path::Path, bytes_max: u64) -> Arc<Recorder> {
    open_with(directory, bytes_max, &prometheus::Registry::new())
}

fn open_with(directory: &std::path::Path, bytes_max: u64, registry: &prometheus::Registry) -> Arc<Recorder> {
    let settings = Settings {
        directory: directory.to_owned(),
        segment_bytes: 4_096,
        bytes_max,
        intent: IntentMode::EachCall,
        access_log: AccessLog::Off,
    };
    let names = vec![(BackendName::new("rabbitmq").unwrap(), vec![ActionName::new("queue.delete").unwrap()])];
    Recorder::open(settings, Catalogue::new(names), registry, Arc::new(StillClock)).unwrap()
}

fn with_outcome(path: &str, peer: &str, see: impl FnOnce(&Outcome<'_>)) {
    let (id, action) = (CallId { prefix: "x".into(), number: 1 }, ActionName::new("queue.delete").unwrap());
    see(&Outcome {
        id: &id,
        at: Timestamp::from_seconds(1),
        listener: "main",
        peer,
        protocol: "h1",
        principal: None,
        identity: None,
        backend: Some(0),
        action: Some((0, &action)),
        resource: None,
        method: "GET",
        path,
        grant: None,
        arguments: None,
        task: None,
        decision: Decision::Deny,
        stale: false,
        reason: Reason::NoGrant,
        detail: None,
        guardrails: &[],
        shadow: &[],
        reasons: &[Reason::NoGrant],
        lease: None,
        upstream_status: None,
        status: Some(403),
        ended: Ended::Refused,
        bytes_in: 0,
        bytes_out: 0,
        own: Duration::ZERO,
        upstream: Duration::ZERO,
        total: Duration::ZERO,
        trace: None,
    });
}

fn intend(worker: &WorkerRecorder) -> Result<(), AuditUnavailable> {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(intended(worker))
}

async fn intended(worker: &WorkerRecorder) -> Result<(), AuditUnavailable> {
    let id = worker.next_id();
    let principal = Principal::parse("https://idp.test#bot").unwrap();
    worker
        .intend(&Intent {
            id: &id,
            at: Timestamp::from_seconds(1),
            principal: &principal,
            backend: &BackendName::new("rabbitmq").unwrap(),
            action: Some(&ActionName::new("queue.delete").unwrap()),
            resource: &Resource::exact("vhosts/%2F/queues/orders"),
            grant: None,
            task: None,
            lease: None,
        })
        .await
}

fn lines(directory: &std::path::Path) -> Vec<serde_json::Value> {
    let mut files: Vec<_> = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let text: String = files.iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn an_intent_is_with_the_kernel_when_intend_returns() {
    let folder = tempfile::tempdir().unwrap();
    let worker = open(folder.path(), 1 << 20).worker();
    with_outcome("/a", "peer", |outcome| worker.outcome(outcome));
    assert!(lines(folder.path()).is_empty(), "an outcome waits");
    intend(&worker).unwrap();
    let kinds: Vec<_> = lines(folder.path()).iter().map(|line| line["kind"].clone()).collect();
    assert_eq!(kinds, ["call", "intent"]);
}

#[test]
fn a_call_is_counted_as_what_it_was_whatever_the_map_says_when_it_ends() {
    let (folder, registry) = (tempfile::tempdir().unwrap(), prometheus::Registry::new());
    let recorder = open_with(folder.path(), 1 << 20, &registry);
    let worker = recorder.worker();
    with_outcome("/a", "peer", |outcome| worker.outcome(outcome));
    for actions in [&["queue.purge", "queue.delete"][..], &["queue.purge"], &[]] {
        let actions = actions.iter().map(|name| ActionName::new(name).unwrap()).collect();
        recorder.recatalogue(Catalogue::new(vec![(BackendName::new("rabbitmq").unwrap(), actions)]));
        with_outcome("/a", "peer", |outcome| worker.outcome(outcome));
    }
    let families = registry.gather();
    let calls = families.iter().find(|family| family.name() == "leasehold_calls_total").unwrap();
    let [series] = calls.get_metric() else { panic!("{calls:?}") };
    let action = series.get_label().iter().find(|label| label.name() == "action").unwrap();
    assert_eq!((action.value(), series.get_counter().get_value()), ("queue.delete", 4.0));
    recorder.flush_all().unwrap();
    assert!(lines(folder.path()).iter().all(|line| line["action"] == "queue.delete"));
}

#[test]
fn intents_of_one_turn_are_all_written_when_the_first_returns() {
    let folder = tempfile::tempdir().unwrap();
    let worker = open(folder.path(), 1 << 20).worker();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let first = async {
            intended(&worker).await.unwrap();
            assert_eq!(lines(folder.path()).len(), 3);
        };
        let (_, second, third) = tokio::join!(first, intended(&worker), intended(&worker));
        second.unwrap();
        third.unwrap();
    });
    assert_eq!(lines(folder.path()).len(), 3, "each is written once");
}

#[test]
fn a_full_directory_denies_until_somebody_takes_files_away() {
    let folder = tempfile::tempdir().unwrap();
    let recorder = open(folder.path(), 16 * 1024);
    let worker = recorder.worker();
    let mut written = 0;
    while intend(&worker).is_ok() {
        written += 1;
        assert!(written < 1_000, "nothing ever fills it");
    }
    assert!(recorder.health().is_err());
    with_outcome("/a", "peer", |outcome| worker.outcome(outcome));
    recorder.flush_all().expect("the reserve takes the outcomes of calls that run");
    for entry in std::fs::read_dir(folder.path()).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    recorder.spool.recount();
    intend(&worker).unwrap();
    assert_eq!(lines(folder.path()).len(), 1, "the next record goes into a file that can be found");
}

#[test]
fn a_directory_that_is_gone_denies_and_recovers() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("audit");
    let recorder = open(&directory, 1 << 20);
    let worker = recorder.worker();
    std::fs::remove_dir_all(&directory).unwrap();
    recorder.spool.recount();
    assert_eq!(intend(&worker), Err(AuditUnavailable));
    assert!(recorder.health().is_err());
    assert_eq!(intend(&worker), Err(AuditUnavailable), "it stays so until a probe succeeds");
    std::fs::create_dir(&directory).unwrap();
    assert!(recorder.spool.probe());
}

#[test]
fn a_torn_last_line_stands_alone_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    intend(&open(folder.path(), 1 << 20).worker()).unwrap();
    let path = folder.path().join("audit-00000001.jsonl");
    let mut text = std::fs::read_to_string(&path).unwrap();
    text.push_str("{\"kind\":\"ca");
    std::fs::write(&path, &text).unwrap();
    intend(&open(folder.path(), 1 << 20).worker()).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    let good = text.lines().filter(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()).count();
    assert_eq!((text.lines().count(), good), (3, 2));
}

#[test]
fn a_link_in_place_of_a_record_file_is_not_followed() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("elsewhere");
    std::fs::write(&target, "").unwrap();
    std::os::unix::fs::symlink(&target, folder.path().join("audit-00000001.jsonl")).unwrap();
    let registry = prometheus::Registry::new();
    let settings = Settings {
        directory: folder.path().to_owned(),
        segment_bytes: 4_096,
        bytes_max: 1 << 20,
        intent: IntentMode::EachCall,
        access_log: AccessLog::Off,
    };
    assert!(Recorder::open(settings, Catalogue::default(), &registry, Arc::new(StillClock)).is_err());
}

/// What is written without a look at it holds nothing that would end a text.
#[test]
fn methods_and_names_need_no_escape() {
    for byte in 0..=u8::MAX {
        let ends = !(b' '..=b'~').contains(&byte) || matches!(byte, b'"' | b'\\');
        assert!(!ends || http::Method::from_bytes(&[b'A', byte]).is_err(), "{byte}");
        let name = format!("a{}", char::from(byte));
        assert!(!ends || (BackendName::new(&name).is_err() && GrantId::new(&name).is_err()), "{byte}");
    }
}

#[test]
fn stamps_are_what_a_library_says() {
    let mut stamp = line::Stamp::default();
    for seconds in [0, 1, 951_782_399, 951_782_400, 1_709_164_800, 1_794_700_800, 4_102_444_799, 253_370_764_800] {
        let at = Timestamp::from_micros(seconds * 1_000_000 + seconds % 999_983);
        let text = String::from_utf8(stamp.of(at).to_vec()).unwrap();
        assert_eq!(Timestamp::parse(&text), Ok(at), "{text}");
    }
}

proptest! {
    /// Whatever a caller puts into a call, its record is one line of JSON that says exactly that.
    #[test]
    fn a_record_is_one_line_of_json(path in "\\PC*|(.|\n|\r|\u{1b}|\u{85}|\u{2028}){0,20}", peer in any::<String>()) {
        with_outcome(&path, &peer, |outcome| {
            let mut lines = Lines::with_capacity(0);
            lines.call(1, Uptime::from_micros(1), &Catalogue::default(), outcome);
            let buffer = lines.as_bytes();
            assert_eq!(buffer.iter().filter(|b| **b == b'\n').count(), 1);
            assert!(!std::str::from_utf8(buffer).unwrap().trim_end().chars().any(char::is_control));
            let value: serde_json::Value = serde_json::from_slice(buffer).unwrap();
            assert_eq!(&value["path"], &path);
            assert_eq!(&value["peer"], &peer);
        });
    }
}
