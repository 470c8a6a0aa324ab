//! What drives an adapter. Metal names no driver, since that is a part of the system: there the system's build stands for it.

/// What the API calls the driver and its version, else the system's build; `None` where neither is known.
pub(super) fn named(driver: &str, version: &str) -> Option<String> {
    let both = format!("{driver} {version}");
    match both.trim() {
        "" => system(),
        both => Some(both.to_owned()),
    }
}

#[cfg(target_vendor = "apple")]
fn system() -> Option<String> {
    const VERSION: &str = "/System/Library/CoreServices/SystemVersion.plist";
    build(&std::fs::read_to_string(VERSION).ok()?)
}

#[cfg(not(target_vendor = "apple"))]
fn system() -> Option<String> {
    None
}

/// The build that the system's property list has, such as `23F79`.
#[cfg(any(test, target_vendor = "apple"))]
fn build(list: &str) -> Option<String> {
    let (_, behind) = list.split_once("<key>ProductBuildVersion</key>")?;
    let (_, behind) = behind.split_once("<string>")?;
    let (build, _) = behind.split_once("</string>")?;
    Some(format!("system build {build}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_what_the_api_says() {
        assert_eq!(
            named("llvmpipe", "Mesa 25.0 "),
            Some("llvmpipe Mesa 25.0".to_owned())
        );
        assert_eq!(named("", "4.6"), Some("4.6".to_owned()));
        assert_eq!(named("", ""), system());
    }

    #[test]
    fn else_by_the_systems_build() {
        let list = "<plist version=\"1.0\">\n<dict>\n\t<key>BuildID</key>\n\t<string>A-B</string>\n\
            \t<key>ProductBuildVersion</key>\n\t<string>23F79</string>\n\
            \t<key>ProductName</key>\n\t<string>macOS</string>\n</dict>\n</plist>\n";
        assert_eq!(build(list), Some("system build 23F79".to_owned()));
        assert_eq!(build("<key>ProductBuildVersion</key>"), None);
        assert_eq!(build(""), None);
    }
}
