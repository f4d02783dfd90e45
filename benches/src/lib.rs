//! What every end-to-end measurement needs: a broker under test in a process of its own (Loggos or Apache Kafka), its
//! CPU time and memory from the kernel's accounting, and one client (librdkafka) that treats both alike.

pub mod broker;
pub mod kernel;
pub mod load;
pub mod table;
