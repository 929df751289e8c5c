//! The description of the API (OpenAPI 3.1), made from the same declarations as its routes.

use std::sync::Arc;

use axum::Json;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{InfoBuilder, OpenApi, OpenApiBuilder, SecurityRequirement};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Api;

/// Every route with its description.
pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    let info = InfoBuilder::new()
        .title("Leasehold control plane")
        .version("1")
        .description(Some(
            "Elevations for machines: asked for, decided, granted, narrowed, ended. Refusals are RFC 9457 problems with a \
             stable `code`.",
        ))
        .build();
    let base = OpenApiBuilder::new()
        .info(info)
        .security(Some([SecurityRequirement::new("token", Vec::<String>::new())]))
        .build();
    OpenApiRouter::with_openapi(base)
        .merge(super::documents::routes())
        .merge(super::requests::routes())
        .merge(super::grants::routes())
        .merge(super::overlay::routes())
        .merge(super::sidecars::routes())
        .merge(super::watch::routes())
        .merge(super::policy::routes())
        .merge(super::records::routes())
        .merge(super::authzen::routes())
        .routes(routes!(openapi))
}

/// The description, as it is served and checked in.
pub fn document() -> OpenApi {
    let (_, mut api) = routes().split_for_parts();
    let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("JWT").build();
    let components = api.components.get_or_insert_default();
    components.security_schemes.insert("token".to_owned(), SecurityScheme::Http(bearer).into());
    api
}

#[utoipa::path(get, path = "/v1/openapi.json", tag = "operations", operation_id = "openapi", summary = "Describe this API", security(()),
    responses((status = 200, description = "OpenAPI 3.1", body = Object)))]
async fn openapi() -> Json<OpenApi> {
    Json(document())
}
