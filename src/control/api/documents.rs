//! Documents: declared all or none, looked at, declared no more.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Api;
use super::act::Trial;
use super::caller::Caller;
use super::input::{Body, Params, nothing_there};
use super::page::Listed;
use super::problem::{Problem, ProblemView};
use super::sight::unexpected;
use crate::control::command::{Command, Reply};
use crate::control::document::{API_VERSION, Document, Kind};
use crate::control::store::{Rows, Store};

pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(apply)).routes(routes!(list)).routes(routes!(show, put, delete))
}

/// A document: `apiVersion`, `kind`, `metadata` and a `spec` of its kind.
#[derive(Debug, Serialize, Deserialize)]
#[serde(transparent)]
struct DocumentView(Document);

impl PartialSchema for DocumentView {
    fn schema() -> RefOr<Schema> {
        let text = || ObjectBuilder::new().schema_type(Type::String);
        let metadata = ObjectBuilder::new()
            .property("name", text().max_length(Some(128)))
            .required("name")
            .property("labels", ObjectBuilder::new().additional_properties(Some(Schema::from(text()))))
            .property("generation", ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(0)));
        ObjectBuilder::new()
            .property("apiVersion", text().enum_values(Some([API_VERSION])))
            .property("kind", text().enum_values(Some(Kind::ALL.map(Kind::as_str))))
            .property("metadata", metadata)
            .property("spec", ObjectBuilder::new())
            .required("apiVersion")
            .required("kind")
            .required("metadata")
            .required("spec")
            .into()
    }
}

impl ToSchema for DocumentView {}

/// Documents that are declared together.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Documents {
    /// All of them, or none, come into force.
    #[schema(max_items = 1_000)]
    documents: Vec<DocumentView>,
}

/// What became of each document.
#[derive(Debug, Serialize, ToSchema)]
struct Results {
    /// In the order they were sent.
    results: Vec<AppliedView>,
}

/// What became of a document.
#[derive(Debug, Serialize, ToSchema)]
struct AppliedView {
    /// Its kind.
    kind: String,
    /// Its name.
    name: String,
    /// `created`, `changed` or `unchanged`.
    result: String,
    /// What it said before.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    before: Option<serde_json::Value>,
    /// What it says now.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    after: Option<serde_json::Value>,
}

#[utoipa::path(post, path = "/v1/apply", tag = "documents", operation_id = "apply", summary = "Declare documents",
    description = "All come into force, or none. With `dry_run` the answer shows what would change.",
    params(Trial), request_body = Documents,
    responses(
        (status = 200, description = "What became of each", body = Results),
        (status = "4XX", description = "Refused; nothing was changed", body = ProblemView, content_type = "application/problem+json")))]
async fn apply(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Params(trial): Params<Trial>,
    Body(sent): Body<Documents>,
) -> Result<Json<Results>, Problem> {
    let documents = sent.documents.into_iter().map(|DocumentView(document)| document).collect();
    api.declare(&caller, documents, trial.dry_run).await.map(Json)
}

impl Api {
    async fn declare(&self, caller: &Caller, documents: Vec<Document>, trial: bool) -> Result<Results, Problem> {
        caller.must_administer("admin:apply", self.now())?;
        // Many large maps take a while, and this thread has others to serve.
        let wrong = tokio::task::block_in_place(|| documents.iter().find_map(|document| (self.usable)(document).err()));
        if let Some(wrong) = wrong {
            return Err(Problem::invalid("documents", wrong));
        }
        let reply = self.run(caller, Command::Apply(documents), trial).await?;
        let Reply::Applied(applied) = reply else { return Err(unexpected()) };
        let results = applied.into_iter().map(|applied| AppliedView {
            kind: applied.kind.as_str().to_owned(),
            name: applied.name,
            result: applied.result,
            before: applied.before,
            after: applied.after,
        });
        Ok(Results { results: results.collect() })
    }
}

fn kind(plural: &str) -> Result<Kind, Problem> {
    Kind::ALL.into_iter().find(|kind| kind.plural() == plural).ok_or_else(nothing_there)
}

#[utoipa::path(get, path = "/v1/{kinds}", tag = "documents", operation_id = "list_documents", summary = "List the documents of a kind",
    params(("kinds" = String, Path, description = "`backends`, `action-maps`, `principals`, `entitlements` or `policies`")),
    responses(
        (status = 200, description = "All of them", body = Listed<DocumentView>),
        (status = "4XX", description = "Refused", body = ProblemView, content_type = "application/problem+json")))]
async fn list(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path(kinds): Path<String>,
) -> Result<Json<Listed<DocumentView>>, Problem> {
    let kind = kind(&kinds)?;
    let known = caller.known()?;
    let all = caller.administers("admin:read", api.now());
    // What one may ask for is no secret to them; all else is the admins'.
    let may_ask = |document: &Document| {
        let asked = caller.catalogue.entitlements.values().find(|e| e.name.as_str() == document.metadata.name);
        kind == Kind::Entitlement && asked.is_some_and(|e| e.eligible.iter().any(|group| known.groups.contains(group)))
    };
    let documents = api.store.view().await?.documents().await?;
    let items = documents.into_iter().filter(|d| d.kind == kind && (all || may_ask(d))).map(DocumentView).collect();
    Ok(Json(Listed { items, next_page_token: None }))
}

#[utoipa::path(get, path = "/v1/{kinds}/{name}", tag = "documents", operation_id = "show_document", summary = "Show a document",
    params(("kinds" = String, Path), ("name" = String, Path)),
    responses(
        (status = 200, description = "The document", body = DocumentView),
        (status = "4XX", description = "Refused", body = ProblemView, content_type = "application/problem+json")))]
async fn show(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path((kinds, name)): Path<(String, String)>,
) -> Result<Json<DocumentView>, Problem> {
    let kind = kind(&kinds)?;
    caller.must_administer("admin:read", api.now())?;
    let document = api.store.view().await?.document(kind, &name).await?;
    document.map(|document| Json(DocumentView(document))).ok_or_else(nothing_there)
}

#[utoipa::path(put, path = "/v1/{kinds}/{name}", tag = "documents", operation_id = "put_document", summary = "Declare one document",
    params(("kinds" = String, Path), ("name" = String, Path), Trial), request_body = DocumentView,
    responses(
        (status = 200, description = "What became of it", body = AppliedView),
        (status = "4XX", description = "Refused; nothing was changed", body = ProblemView, content_type = "application/problem+json")))]
async fn put(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path((kinds, name)): Path<(String, String)>,
    Params(trial): Params<Trial>,
    Body(DocumentView(document)): Body<DocumentView>,
) -> Result<Json<AppliedView>, Problem> {
    if document.kind != kind(&kinds)? || document.metadata.name != name {
        let detail =
            format!("the path says {kinds}/{name} and the document {}/{}", document.kind, document.metadata.name);
        return Err(Problem::invalid("another_document", detail));
    }
    let mut results = api.declare(&caller, vec![document], trial.dry_run).await?.results;
    results.pop().map(Json).ok_or_else(unexpected)
}

#[utoipa::path(delete, path = "/v1/{kinds}/{name}", tag = "documents", operation_id = "delete_document", summary = "Declare a document no more",
    description = "What was granted under an entitlement ends with it.",
    params(("kinds" = String, Path), ("name" = String, Path), Trial),
    responses(
        (status = 204, description = "It is declared no more"),
        (status = "4XX", description = "Refused; nothing was changed", body = ProblemView, content_type = "application/problem+json")))]
async fn delete(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path((kinds, name)): Path<(String, String)>,
    Params(trial): Params<Trial>,
) -> Result<StatusCode, Problem> {
    api.run(&caller, Command::Delete(kind(&kinds)?, name), trial.dry_run).await?;
    Ok(StatusCode::NO_CONTENT)
}
