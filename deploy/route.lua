-- Orthanc hands the CT and MR series of every study that is complete on to the node, in one association: the
-- node chooses among them. Results are of other modalities: they stay where they are, and when they are all
-- that is new, nothing is sent.
function OnStableStudy(studyId, tags, metadata)
  local images = {}
  local newest, last = {}, ''
  for _, series in ipairs(ParseJson(RestApiGet('/studies/' .. studyId .. '/series', true))) do
    local modality = series['MainDicomTags']['Modality']
    series['IsImage'] = modality == 'CT' or modality == 'MR'
    if series['IsImage'] then
      table.insert(images, series['ID'])
    end
    if (series['LastUpdate'] or '') >= last then
      newest, last = series, series['LastUpdate'] or ''
    end
  end
  if newest['IsImage'] then
    local asked = {}
    asked['Resources'] = images
    asked['Synchronous'] = false
    RestApiPost('/modalities/zoomseg/store', DumpJson(asked), true)
  end
end
