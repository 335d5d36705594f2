// CLocale: how numbers are written and read where programs read them, whatever the user's language.
//
// A program that asks for its user's language (llama-cli does) has the C library write 0,5 for 0.5 and
// read no more than the 1 of 1.5. Set for the thread as long as an object lives, so never where
// somebody else's code is called. One thread's, on its stack.
#ifndef REMOE_BASE_C_LOCALE_H_
#define REMOE_BASE_C_LOCALE_H_

#include <locale.h>

namespace remoe {

class CLocale {
 public:
  CLocale() : before_(uselocale(Get())) {}
  ~CLocale() { uselocale(before_); }
  CLocale(const CLocale&) = delete;
  CLocale& operator=(const CLocale&) = delete;

 private:
  static locale_t Get() {
    static const locale_t c = newlocale(LC_ALL_MASK, "C", nullptr);
    return c;  // null, which changes nothing, where there is no memory for it
  }
  const locale_t before_;
};

}  // namespace remoe

#endif  // REMOE_BASE_C_LOCALE_H_
