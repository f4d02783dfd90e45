//! What every end-to-end measurement needs: a broker (Loggos or Apache Kafka) or an ensemble (Loggos or
//! ZooKeeper) under test in processes of their own, their CPU time and memory from the kernel's accounting, and one
//! client that treats both alike.

pub mod broker;
pub mod ensemble;
pub mod kernel;
pub mod load;
pub mod table;
