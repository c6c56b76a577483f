//! The Admin service: what people and tests ask beside CSI. Served next to CSI, for whoever may speak CSI.

use std::sync::Arc;

use csi_proto::admin::{SurveyRequest, SurveyResponse, admin_server::Admin};
use tonic::{Request, Response, Status};

use crate::api::Api;

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
}
