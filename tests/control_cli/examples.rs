//! The four worked examples of `config/control`, each as whoever is in it would type it.

use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer as Signer, KeyPair, KeyUsagePurpose,
    SanType,
};
use serde_json::{Value, json};

use crate::issuer::{Issuer, in_seconds, now};
use crate::world::{Control, Person};

/// A control plane over TLS, with workloads that show certificates and issuers for people and pipelines.
struct Company {
    control: Control,
    url: String,
    authority: Signer<'static, KeyPair>,
    issuer: Issuer,
}

impl Company {
    /// Has the documents of an example in force, with `change` made to their text.
    fn with(example: &str, change: impl Fn(&str) -> String) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let ca = params.self_signed(&key).unwrap().pem();
        let (authority, issuer) = (Signer::new(params, key), Issuer::new("company"));
        let (server, server_key) = sign(&authority, SanType::IpAddress([127, 0, 0, 1].into()));
        let control = Control::start_with(
            &[("ca.pem", &ca), ("tls.pem", &server), ("tls.key", &server_key), ("keys.json", &issuer.jwks())],
            "identity:
  spiffe: [{trust_domain: prod.example, bundle: ca.pem}]
  issuers:
    - {name: idp, issuer: 'https://idp.example', audience: [leasehold], algorithm: EdDSA, keys: {file: keys.json}}
    - {name: gitlab, issuer: 'https://gitlab.example', audience: [leasehold], algorithm: EdDSA, keys: {file: keys.json}}
",
            ", tls: {certificate: tls.pem, key: tls.key, client_ca: ca.pem, client_certificate: optional}",
        );
        let url = control.url.replace("http://", "https://");
        let company = Self { control, url, authority, issuer };
        let folder = format!("{}/config/control/{example}", env!("CARGO_MANIFEST_DIR"));
        let admin = company.admin();
        // First as it is shipped, then with the change.
        admin.ok(&["apply", "-f", &folder]);
        let shipped = std::fs::read_to_string(format!("{folder}/documents.yaml")).unwrap();
        company.control.write("changed.yaml", &change(&shipped));
        admin.ok(&["apply", "-f", "changed.yaml"]);
        company
    }

    fn new(example: &str) -> Self {
        Self::with(example, str::to_owned)
    }

    fn at(&self) -> Person {
        let ca = self.control.folder().join("ca.pem").display().to_string();
        Person::at(self.control.folder()).with("LEASEHOLD_SERVER", &self.url).with("LEASEHOLD_CA", &ca)
    }

    fn admin(&self) -> Person {
        self.at()
    }

    /// Somebody with a token, of `https://idp.example` or `https://gitlab.example`.
    fn person(&self, issuer: &str, subject: &str) -> Person {
        let claims = json!({"iss": issuer, "sub": subject, "aud": "leasehold", "iat": now(), "exp": now() + 600});
        self.at().with("LEASEHOLD_TOKEN", &self.issuer.sign(&claims))
    }

    /// A workload with a certificate.
    fn workload(&self, name: &str) -> Person {
        let (certificate, key) = sign(&self.authority, SanType::URI(name.try_into().unwrap()));
        let file = name.replace(['/', ':'], "_");
        self.control.write(&format!("{file}.pem"), &certificate);
        self.control.write(&format!("{file}.key"), &key);
        let at = |end: &str| self.control.folder().join(format!("{file}.{end}")).display().to_string();
        self.at().with("LEASEHOLD_CERTIFICATE", &at("pem")).with("LEASEHOLD_KEY", &at("key"))
    }

    /// Every request, approval, grant and end of it is on the record, and the record is whole.
    fn ends_well(&self) {
        assert!(self.admin().ok(&["audit", "verify"]).starts_with("entries 1 to "));
    }
}

fn sign(authority: &Signer<'static, KeyPair>, name: SanType) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    params.subject_alt_names = vec![name];
    (params.signed_by(&key, authority).unwrap().pem(), key.serialize_pem())
}

fn grant_of(request: &Value) -> &str {
    request["grant_id"].as_str().unwrap_or_else(|| panic!("{request}"))
}

const IDP: &str = "https://idp.example";

#[test]
fn thirty_minutes_of_maintenance_on_an_incident() {
    let company = Company::new("incident-maintenance");
    let maintenance = company.workload("spiffe://prod.example/ns/db/sa/maintenance");
    assert!(maintenance.ok(&["whoami"]).starts_with("spiffe://prod.example/ns/db/sa/maintenance\n"));
    let ask = ["request", "orders-db-maintenance", "--task", "pagerduty:P1", "--justification", "bloat"];
    maintenance.fails(1, &["request", "orders-db-maintenance", "--justification", "x"], "wants a task");

    // An incident that only the requester knows of is for the DBA on call, and not for the one who answers for it.
    let waiting = maintenance.asks(&ask[1..]);
    company.person(IDP, "alice").fails(1, &["approve", &waiting, "--yes"], "owner");
    assert!(company.person(IDP, "bob").ok(&["requests", "--can-approve"]).contains(&waiting));
    maintenance.ok(&["cancel", &waiting]);

    company.admin().ok(&["tasks", "open", "pagerduty:P1", "--kind", "incident"]);
    maintenance.fails(1, &[&ask[..], &["--ttl", "31m"]].concat(), "duration");
    let granted = maintenance.json(&ask);
    assert_eq!(granted["ruling"]["determining"], json!(["leasehold.eligible", "orders-db.auto-on-incident"]));
    assert!(maintenance.ok(&["grants", "--mine", "--state", "active"]).contains("in 29m"));
    let closed = company.admin().ok(&["tasks", "close", "pagerduty:P1"]);
    assert!(closed.contains(&format!("{} ended", grant_of(&granted))), "{closed}");
    maintenance.fails(1, &ask, "closed");
    company.ends_well();
}

#[test]
fn a_pipeline_deploys_while_it_runs() {
    let company = Company::new("ci-deploy");
    let gitlab = "https://gitlab.example";
    let main = company.person(gitlab, "project_path:shop/app:ref_type:branch:ref:main");
    let ask = ["request", "deploy-shop-queues", "--task", "gitlab:shop/app:run:7"];
    main.fails(1, &ask, "");
    company.admin().ok(&["tasks", "open", "gitlab:shop/app:run:7", "--kind", "pipeline"]);
    let granted = main.json(&[&ask[..], &["--ttl", "10m"]].concat());
    assert!(main.ok(&["show", grant_of(&granted)]).contains("vhosts/%2F/queues/shop.*"));
    let branch = company.person(gitlab, "project_path:shop/app:ref_type:branch:ref:feature");
    branch.fails(1, &ask, "");
    // It needs no more than the one queue, and gives the rest back.
    let narrow = main.json(&["reduce", grant_of(&granted), "--resource", "vhosts/%2F/queues/shop.orders"]);
    assert_eq!(narrow["resources"], json!(["vhosts/%2F/queues/shop.orders"]));
    let closed = company.admin().ok(&["tasks", "close", "gitlab:shop/app:run:7"]);
    assert!(closed.contains(narrow["id"].as_str().unwrap()), "{closed}");
    main.fails(1, &ask, "closed");
    company.ends_well();
}

#[test]
fn an_agent_looks_up_one_customer_once() {
    let company = Company::new("agent-retrieval");
    let agent = company.workload("spiffe://prod.example/ns/agents/sa/support");
    let all =
        ["request", "customer-once", "--task", "zendesk:4711", "--justification", "the caller asks for an invoice"];
    let one = [&all[..], &["--resource", "customers/4711"]].concat();
    agent.fails(1, &all[..2], "task");
    assert!(agent.says(&one).out.contains("open case"));
    company.admin().ok(&["tasks", "open", "zendesk:4711", "--kind", "case"]);
    let denied = agent.says(&all);
    assert!(denied.code == Some(1) && denied.out.contains("name the customer"), "{denied:?}");
    let id = agent.asks(&one[1..]);
    company.person(IDP, "carol").fails(1, &["approve", &id, "--yes"], "owner");
    let dave = company.person(IDP, "dave");
    let said = dave.says(&["approve", &id, "--yes"]);
    assert!(said.code == Some(0) && said.err.contains("do customer.read on customers/4711 of backend customers, for 5m from when it is approved, once, for task zendesk:4711."), "{said:?}");
    let listed = agent.ok(&["grants", "--mine", "--state", "active"]);
    assert!(listed.contains("0/1") && listed.contains("in 4m"), "{listed}");
    company.ends_well();
}

#[test]
fn a_migration_in_its_window() {
    // The hours of the ledger are those of the clock on the wall: here they are all of the day, then none.
    let open = |text: &str| {
        text.replace("duration(\"20h\")", "duration(\"25h\")").replace("duration(\"6h\")", "duration(\"0h\")")
    };
    let company = Company::with("migration-window", open);
    let migrator = company.workload("spiffe://prod.example/ns/ledger/sa/migrator");
    let ask =
        ["request", "ledger-migration", "--task", "servicenow:CHG1", "--justification", "new keys", "--ttl", "4h"];
    let admin = company.admin();
    admin.ok(&["tasks", "open", "servicenow:CHG1", "--kind", "change", "--until", &in_seconds(3_600)]);
    let denied = migrator.says(&ask);
    assert!(denied.code == Some(1) && denied.out.contains("the ledger is in use"), "{denied:?}");
    let shipped = std::fs::read_to_string(company.control.folder().join("changed.yaml")).unwrap();
    company.control.write("night.yaml", &shipped.replace("duration(\"25h\")", "duration(\"0h\")"));
    let changed = admin.ok(&["apply", "-f", "night.yaml"]);
    assert_eq!(changed.lines().filter(|line| line.ends_with(" changed")).count(), 1, "{changed}");

    let id = migrator.asks(&ask[1..]);
    let says = |name: &str| company.person(IDP, name).says(&["approve", &id, "--yes"]);
    let refused = |name: &str| assert_eq!(says(name).code, Some(1), "{name}");
    // Erin answers for it, and the board comes after the owners.
    refused("erin");
    refused("grace");
    assert!(says("frank").out.contains("it waits for 2 of change-board (step 2 of 2)"));
    assert!(says("grace").out.contains("it waits for 1 of change-board"));
    // Nobody counts twice.
    assert!(says("grace").out.contains("it waits for 1 of change-board"));
    assert!(says("heidi").out.contains("is approved: grant grt_"));
    // However long was asked for: the window of the change ends it.
    let listed = migrator.ok(&["grants", "--mine", "--state", "active"]);
    assert!(listed.contains("in 59m"), "{listed}");
    company.ends_well();
}
