//! csi-proto.
