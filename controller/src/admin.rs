//! The Admin service: what people and tests ask beside CSI. Served next to CSI, for whoever may speak CSI.

use std::sync::Arc;

use csi_proto::admin::{
    DrainRequest, DrainResponse, SurveyRequest, SurveyResponse, admin_server::Admin, drain_request,
};
use tonic::{Request, Response, Status};

use crate::{
    api::{Api, Target},
    status::status,
};

/// The Admin service of a controller.
pub struct AdminService {
    api: Arc<dyn Api>,
}

impl AdminService {
    /// Over this core.
    pub fn new(api: Arc<dyn Api>) -> Self {
        Self { api }
    }
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn survey(&self, _: Request<SurveyRequest>) -> Result<Response<SurveyResponse>, Status> {
        let survey = self.api.survey().await;
        let json = serde_json::to_string(&survey)
            .map_err(|e| Status::internal(format!("the survey cannot be rendered: {e}")))?;
        Ok(Response::new(SurveyResponse { json }))
    }

    async fn drain(&self, request: Request<DrainRequest>) -> Result<Response<DrainResponse>, Status> {
        let r = request.into_inner();
        let bad = |e: pool::ids::BadId| Status::invalid_argument(e.to_string());
        let target = match r.target {
            Some(drain_request::Target::Disk(d)) => Target::Disk(d.parse().map_err(bad)?),
            Some(drain_request::Target::Node(n)) => Target::Node(n.parse().map_err(bad)?),
            None => return Err(Status::invalid_argument("a disk or a node is needed")),
        };
        let rows = self.api.drain(target, r.undo, r.dry_run).await.map_err(|e| status(&e))?;
        let json = serde_json::to_string(&rows)
            .map_err(|e| Status::internal(format!("the answer cannot be rendered: {e}")))?;
        Ok(Response::new(DrainResponse { json }))
    }
}
