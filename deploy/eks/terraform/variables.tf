variable "name" {
  description = "Name of the cluster, and beginning of all other names."
  type        = string
  default     = "rufus"
}

variable "region" {
  description = "Region in which Trn1 is offered."
  type        = string
  default     = "us-west-2"
}

variable "zones" {
  description = "Availability zones; the first is that of the Trn1 nodes and of FSx."
  type        = list(string)
  default     = ["us-west-2d", "us-west-2b"]
  validation {
    condition     = length(var.zones) >= 2
    error_message = "EKS wants two zones at least."
  }
}

variable "trn1_nodes" {
  description = "Trn1 nodes: groups x config.nodes. Each is billed from its start."
  type        = number
  default     = 0
}

variable "compile_nodes" {
  description = "1 while the jobs that load and compile run, else 0."
  type        = number
  default     = 0
}

variable "compile_instance" {
  description = "r7i.24xlarge for 70B, r7i.48xlarge for 405B: what `rufus-serve plan` asks for."
  type        = string
  default     = "r7i.24xlarge"
}

variable "capacity_reservation_id" {
  description = "An On-Demand Capacity Reservation or Capacity Block for the Trn1 nodes; empty: none."
  type        = string
  default     = ""
}

variable "capacity_block" {
  description = "The reservation is a Capacity Block."
  type        = bool
  default     = false
}

variable "weights_bucket" {
  description = "Bucket that the model's files are copied from."
  type        = string
}

variable "fsx_gib" {
  description = "Size of the file system; a multiple of 2400."
  type        = number
  default     = 2400
}
