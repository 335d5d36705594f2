// PeerReader: a Reader for which a neighbour's memory is one more place that a model's bytes are in.
//
// It passes reads on to storage. One of a whole matrix of an expert goes to a peer instead where that
// is expected to be over sooner, by bytes under way and bandwidths measured; what a peer does not
// send, or sends damaged, storage reads. For a file that holds no experts (`remoe-edge convert
// dense`) peers are the only place, and a read that none of them answers is an error.
//
// Any thread. Set the peers before they are needed, and null before they go.
#ifndef REMOE_REMOTE_PEER_READER_H_
#define REMOE_REMOTE_PEER_READER_H_

#include <atomic>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <string>
#include <utility>
#include <vector>

#include "gguf/model_file.h"
#include "remote/transfer_rate.h"
#include "storage/reader.h"

namespace remoe {

// Who has weights in memory elsewhere; RemoteSource is one.
class WeightsElsewhere {
 public:
  struct Matrix {
    int layer = 0;
    uint16_t expert = 0;
    int matrix = 0;
  };
  virtual ~WeightsElsewhere() = default;
  // Microseconds until so many bytes would be here, or -1 where nobody sends them.
  virtual double ExpectedUs(const Matrix& matrix, uint64_t n_bytes) const = 0;
  // RETURNS: whether done() will be called, from another thread.
  virtual bool Fetch(const Matrix& matrix, uint64_t n_bytes, uint8_t* dest,
                     const std::function<void(const Status&)>& done) = 0;
};

class PeerReader : public Reader {
 public:
  PeerReader(std::unique_ptr<Reader> storage, const std::vector<ExpertLayer>& layers,
             bool storage_has_experts);
  ~PeerReader() override;

  void SetPeers(WeightsElsewhere* peers);
  // Of storage, measured; 0 while it is not known.
  double storage_bytes_per_s() const { return storage_rate_.bytes_per_s(); }

  void Submit(const Read* reads, int n, const ReadDone& done) override;
  void Drain() override;
  int CancelBackground() override { return storage_->CancelBackground(); }
  void Promote(uint64_t tag) override { storage_->Promote(tag); }
  Status CheckUnchanged() const override { return storage_->CheckUnchanged(); }
  void SetFaults(const FaultPlan& plan) override { storage_->SetFaults(plan); }
  const char* backend() const override { return storage_->backend(); }
  bool direct() const override { return storage_->direct(); }
  int depth() const override { return storage_->depth(); }
  ReaderCounts counts() const override { return storage_->counts(); }
  std::vector<std::string> notes() const override { return storage_->notes(); }

 private:
  struct Span {
    uint64_t expert_bytes = 0, end = 0;
    int layer = 0, matrix = 0;
  };
  enum class Where { kNoExpert, kMatrix, kPart };
  Where Find(const Read& read, WeightsElsewhere::Matrix* matrix) const;
  // RETURNS: false where the read is storage's.
  bool SendForIt(const Read& read, const ReadDone& done, int tries);
  void ReadHere(const Read* reads, int n, const ReadDone& done);

  const std::unique_ptr<Reader> storage_;
  const bool storage_has_experts_;
  std::map<std::pair<int, uint64_t>, Span> spans_;  // by file and where they begin
  TransferRate storage_rate_;
  std::atomic<int64_t> storage_bytes_{0};  // under way
  std::atomic<uint64_t> n_choices_{0};

  mutable std::shared_mutex peers_mutex_;
  WeightsElsewhere* peers_ = nullptr;

  std::mutex mutex_;
  std::condition_variable ended_;
  int under_way_ = 0;  // reads that peers were asked for
};

}  // namespace remoe

#endif  // REMOE_REMOTE_PEER_READER_H_
