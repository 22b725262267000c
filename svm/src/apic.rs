//! AVIC.
