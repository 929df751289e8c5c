//! `leasehold explain`.

use std::path::PathBuf;

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::{AdminArgs, Failure, Output, admin, print, show};
use crate::domain::principal::Principal;

/// The largest body that is sent along: in base64 it must fit into a URL, which has 64 KiB.
const BODY_BYTES_MAX: u64 = 32 << 10;

/// The call to explain.
#[derive(Debug, Args)]
pub(super) struct Explain {
    #[command(flatten)]
    admin: AdminArgs,
    /// Who would make the call: `spiffe://…`, or issuer and subject as `https://idp.example#ci-bot`
    #[arg(long, value_name = "PRINCIPAL")]
    principal: String,
    /// Which backend is meant, where there are several
    #[arg(long, value_name = "NAME")]
    backend: Option<String>,
    /// A header of the call; may be given more than once
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE")]
    headers: Vec<String>,
    /// A file with the body of the call, where the action depends on it
    #[arg(long, value_name = "FILE")]
    body: Option<PathBuf>,
    /// How to print the answer
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// The method of the call
    #[arg(value_name = "METHOD")]
    method: String,
    /// The path of the call, with its query
    #[arg(value_name = "PATH")]
    target: String,
}

impl Explain {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let query = self.query().map_err(Failure::Usage)?;
        let document = admin::get(&self.admin.url, &format!("/explain?{query}"))?;
        print::out(&show::document_text(&document, self.output)?);
        Ok(())
    }

    fn query(&self) -> anyhow::Result<String> {
        Principal::parse(&self.principal).context("--principal")?;
        http::Method::from_bytes(self.method.as_bytes())
            .ok()
            .with_context(|| format!("`{}` is not a method; write `GET`, `DELETE` …", self.method.escape_debug()))?;
        anyhow::ensure!(self.target.starts_with('/'), "the path begins with `/`; write `/api/queues/%2F/orders`");
        let mut query = String::new();
        let mut add = |name: &str, value: &str| {
            let separator = if query.is_empty() { "" } else { "&" };
            query.push_str(&format!("{separator}{name}={}", utf8_percent_encode(value, NON_ALPHANUMERIC)));
        };
        add("principal", &self.principal);
        if let Some(backend) = &self.backend {
            add("backend", backend);
        }
        add("method", &self.method);
        add("target", &self.target);
        for header in &self.headers {
            let parsed = header.split_once(':').filter(|(name, value)| {
                name.parse::<http::HeaderName>().is_ok() && http::HeaderValue::from_str(value.trim()).is_ok()
            });
            let (name, value) = parsed
                .with_context(|| format!("`{}` is not a header; write `-H 'name: value'`", header.escape_debug()))?;
            add("header", &format!("{name}: {}", value.trim()));
        }
        if let Some(path) = &self.body {
            let shown = path.display();
            let length = std::fs::metadata(path).with_context(|| format!("--body {shown}"))?.len();
            anyhow::ensure!(
                length <= BODY_BYTES_MAX,
                "--body {shown}: it is larger than 32 KiB; send one that has only what the action depends on"
            );
            let body = std::fs::read(path).with_context(|| format!("--body {shown}"))?;
            add("body_base64", &STANDARD.encode(body));
        }
        Ok(query)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explain(principal: &str, headers: &[&str], method: &str, target: &str) -> anyhow::Result<String> {
        Explain {
            admin: AdminArgs { url: "http://127.0.0.1:1".parse().expect("a URL") },
            principal: principal.to_owned(),
            backend: Some("db".to_owned()),
            headers: headers.iter().map(|h| (*h).to_owned()).collect(),
            body: None,
            output: Output::Json,
            method: method.to_owned(),
            target: target.to_owned(),
        }
        .query()
    }

    #[test]
    fn a_call_becomes_a_query() {
        let query = explain("https://i#s", &["A: b&c", "d:e"], "GET", "/%2F?x=1").expect("a query");
        assert_eq!(
            query,
            "principal=https%3A%2F%2Fi%23s&backend=db&method=GET&target=%2F%252F%3Fx%3D1&header=A%3A%20b%26c&header=d%3A%20e"
        );
        assert!(explain("s", &[], "GET", "/").is_err());
        assert!(explain("https://i#s", &["nope"], "GET", "/").is_err());
        assert!(explain("https://i#s", &[], "GE T", "/").is_err());
        assert!(explain("https://i#s", &[], "GET", "api").is_err());
    }
}
